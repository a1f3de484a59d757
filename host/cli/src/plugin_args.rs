//! The command line of `liftplan plugin`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

/// `plugin`.
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// Install a plugin for the configurations in a directory, after showing what it is and asks for; without one, fetch
    /// what liftplan.lock names and is missing on this machine.
    Install(Install),
    /// Show what is installed.
    List(Project),
    /// Show what a plugin says about itself, and its settings.
    Info(Info),
    /// Take a plugin out of liftplan.lock.
    Remove(Remove),
    /// Make a project for a plugin of your own, which builds and has a test.
    New(New),
    /// Build a plugin's project into its directory dist.
    Build(Build),
    /// Look at a plugin as a user's machine will: what it says, what it imports, a plan for a small made-up model.
    Check(Check),
    /// Compare the plans of a project's cases.json with the accepted ones, and a component's with a library's.
    Test(Test),
}

/// Whose plugins.
#[derive(Debug, ClapArgs)]
pub struct Project {
    /// The directory of liftplan.lock, beside the configurations that use it. Default: the current one.
    #[arg(long, value_name = "DIR")]
    pub project: Option<PathBuf>,
}

/// `plugin install`.
#[derive(Debug, ClapArgs)]
pub struct Install {
    /// A file, https://…, or oci://registry/name:version.
    #[arg(value_name = "FILE|URL|oci://…")]
    pub source: Option<String>,
    /// For whom.
    #[command(flatten)]
    pub project: Project,
    /// Install without asking.
    #[arg(long, short)]
    pub yes: bool,
    /// The author's minisign key, or its file: the plugin must be signed with it.
    #[arg(long, value_name = "KEY", requires = "source")]
    pub public_key: Option<String>,
    /// Where the signature is, if not beside the plugin as NAME.minisig.
    #[arg(long, value_name = "FILE|URL", requires = "source")]
    pub signature: Option<String>,
    /// Allow the native library with this sha256, which can then do whatever you can.
    #[arg(long, value_name = "SHA256")]
    pub allow_native: Option<String>,
    /// Take a file whose version is installed already with other content.
    #[arg(long, requires = "source")]
    pub replace: bool,
}

/// `plugin info`.
#[derive(Debug, ClapArgs)]
pub struct Info {
    /// An installed plugin's name, or a plugin's file.
    #[arg(value_name = "NAME|FILE")]
    pub plugin: String,
    /// Where it is installed.
    #[command(flatten)]
    pub project: Project,
}

/// `plugin remove`.
#[derive(Debug, ClapArgs)]
pub struct Remove {
    /// The plugin's name.
    pub name: String,
    /// Where it is installed.
    #[command(flatten)]
    pub project: Project,
    /// Also delete its file, which other projects may use.
    #[arg(long)]
    pub purge: bool,
}

/// `plugin new`.
#[derive(Debug, ClapArgs)]
pub struct New {
    /// The directory to make; its last part is the plugin's name.
    #[arg(value_name = "NAME")]
    pub directory: PathBuf,
    /// rust: a component and a library; c: a library; js, python: a component.
    #[arg(long, default_value = "rust")]
    pub lang: liftplan::plugin::author::Language,
    /// Who makes it. Default: what git says.
    #[arg(long)]
    pub author: Option<String>,
}

/// `plugin build`.
#[derive(Debug, ClapArgs)]
pub struct Build {
    /// The project.
    #[arg(default_value = ".")]
    pub directory: PathBuf,
    /// Build only this: wasm, a component, or native, a library for this machine. Default: all that the language can.
    #[arg(long)]
    pub target: Option<BuildTarget>,
}

/// What a plugin is built for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum BuildTarget {
    /// A WebAssembly component.
    Wasm,
    /// A native library for this machine.
    Native,
}

/// `plugin check`.
#[derive(Debug, ClapArgs)]
pub struct Check {
    /// A plugin's file, or a project whose built files to look at.
    #[arg(value_name = "FILE|DIR", default_value = ".")]
    pub plugin: PathBuf,
    /// One of its settings, as in --set percent=50. Can be given several times.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
}

/// `plugin test`.
#[derive(Debug, ClapArgs)]
pub struct Test {
    /// The project, with its files built.
    #[arg(default_value = ".")]
    pub directory: PathBuf,
    /// Accept the plans as they are now.
    #[arg(long)]
    pub accept: bool,
}
