//! What authors of plugins need: a project to begin with ([`create`]), its build ([`build`]), a look at the file as a user's
//! machine will see it ([`check`]), and its tests ([`test`]): plans of a small made-up model, compared with the ones that
//! were accepted before, and the component's with the library's.

mod build;
mod check;
mod fake;
mod new;
mod test;

pub use build::{Built, Target, build, files};
pub use check::{Checked, check, settings};
pub use fake::FakeModel;
pub use new::{Language, create};
pub use test::{Tested, test};
