//! Child processes: started, watched, and told apart by how they end.
//!
//! A child has a process group of its own, so that Ctrl-C reaches it once, from here; it is asked to stop where it can
//! go on later. If this process dies, so do its children.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::store::Failure;
use crate::files::output_error;
use crate::report::{process, text::memory};
use crate::{Error, Result};

/// What to run.
pub struct Child<'a> {
    /// The program: the same executable as this process's.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables of its environment, over those of this process.
    pub environment: Vec<(&'static str, &'static str)>,
    /// Where its messages go.
    pub log: PathBuf,
    /// Memory in RAM at which it is ended, in bytes.
    pub memory_limit: Option<u64>,
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// With exit code 0, after so many seconds.
    Done(f64),
    /// Otherwise.
    Failed(Failure),
    /// Because the user stopped the comparison, or somebody asked the child to stop: it has not failed.
    Stopped,
}

/// Between two looks at a child.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Child<'_> {
    /// Runs it to its end, or until `stop` is set.
    ///
    /// # Errors
    /// When it can't be started or watched.
    pub fn run(self, stop: &AtomicBool) -> Result<End> {
        let log = std::fs::File::create(&self.log).map_err(|error| output_error("create", &self.log, &error))?;
        let mut command = Command::new(self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
        command.envs(self.environment.iter().copied());
        in_a_group_of_its_own(&mut command);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| Error::internal(format!("{} cannot be started: {error}", self.program.display())))?;
        let mut asked_to_stop = false;
        let mut over: Option<u64> = None;
        let status = loop {
            if let Some(status) =
                child.try_wait().map_err(|error| Error::internal(format!("a child is lost: {error}")))?
            {
                break status;
            }
            if stop.load(Ordering::Relaxed) && !asked_to_stop {
                interrupt(&mut child);
                asked_to_stop = true;
            }
            if let Some(limit) = self.memory_limit.filter(|_| over.is_none())
                && let Some(held) = process::peak_bytes_of(child.id()).filter(|held| *held > limit)
            {
                over = Some(held);
                child.kill().ok();
            }
            std::thread::sleep(LOOK_EVERY);
        };
        if asked_to_stop || over.is_some() {
            end_group(&child);
        }
        if let (Some(held), Some(limit)) = (over, self.memory_limit) {
            let reason = format!("stopped at {}: the budget is {}", memory(held), memory(limit));
            return Ok(End::Failed(Failure { out_of_memory: true, reason }));
        }
        if status.success() {
            return Ok(End::Done(started.elapsed().as_secs_f64()));
        }
        if asked_to_stop || was_interrupted(status) {
            return Ok(End::Stopped);
        }
        Ok(End::Failed(why(status, &std::fs::read_to_string(&self.log).unwrap_or_default())))
    }
}

/// Why it failed, from how it ended and what it said last.
fn why(status: ExitStatus, log: &str) -> Failure {
    let said = log.rfind("error: ").map_or("", |at| &log[at + "error: ".len()..]);
    let said = said.lines().next().unwrap_or_default().trim();
    let lower = log.to_lowercase();
    let lacked = ["out of memory", "out of gpu memory", "out_of_memory", "memory allocation of"]
        .iter()
        .any(|words| lower.contains(words));
    let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let reason = match (signal(status), said) {
        (Some(9), _) => "killed by the system, most likely for want of memory".to_string(),
        (Some(signal), "") => format!("ended by signal {signal}: {last}"),
        (None, "") => format!("{status}: {last}"),
        (_, said) => said.to_string(),
    };
    Failure { out_of_memory: lacked || signal(status) == Some(9), reason }
}

/// Whether it was asked to stop: a service manager or a cluster's scheduler asks children and parent alike, in any order.
fn was_interrupted(status: ExitStatus) -> bool {
    const HANGUP_INTERRUPT_TERMINATE: [i32; 3] = [1, 2, 15];
    status.code() == Some(Error::interrupted("").exit_code())
        || signal(status).is_some_and(|signal| HANGUP_INTERRUPT_TERMINATE.contains(&signal))
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_: ExitStatus) -> Option<i32> {
    None
}

#[cfg(unix)]
fn in_a_group_of_its_own(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    ends_with_this_process(command);
}

#[cfg(not(unix))]
fn in_a_group_of_its_own(_: &mut Command) {}

/// Should this process die, the child is asked to stop, as by Ctrl-C.
pub(super) fn ends_with_this_process(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: prctl is async-signal-safe, is given plain integers, and touches no memory of this process.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

#[cfg(unix)]
fn interrupt(child: &mut std::process::Child) {
    // Not SIGINT: a shell that starts this process in the background has it ignored, and children inherit that.
    // SAFETY: a signal to a child that has not been waited for, so that its id is still its own.
    unsafe {
        libc::kill(child.id() as libc::pid_t, libc::SIGTERM);
    }
}

/// Ends what a child that has ended left behind in its group: the command that makes the score, a plugin's process.
#[cfg(unix)]
fn end_group(child: &std::process::Child) {
    // SAFETY: a signal to the group that the child led. Its number is not given out again while somebody is in it, and
    // nobody else has got it in the moment since the child was waited for.
    unsafe {
        libc::kill(-(child.id() as libc::pid_t), libc::SIGTERM);
    }
}

#[cfg(not(unix))]
fn end_group(_: &std::process::Child) {}

#[cfg(not(unix))]
fn interrupt(child: &mut std::process::Child) {
    child.kill().ok();
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str, memory_limit: Option<u64>, stop: &AtomicBool) -> End {
        let folder = tempfile::tempdir().unwrap();
        let child = Child {
            program: Path::new("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            environment: Vec::new(),
            log: folder.path().join("log.txt"),
            memory_limit,
        };
        child.run(stop).unwrap()
    }

    fn failure(script: &str) -> Failure {
        match shell(script, None, &AtomicBool::new(false)) {
            End::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_reason_is_what_it_said_last() {
        assert!(matches!(shell("exit 0", None, &AtomicBool::new(false)), End::Done(_)));
        let said = failure("echo 'error: step 3: the loss is not finite' >&2; echo '  help: lower it' >&2; exit 6");
        assert_eq!(said, Failure::new("step 3: the loss is not finite"));
        assert_eq!(failure("echo nothing to say >&2; exit 3").reason, "exit status: 3: nothing to say");
    }

    #[test]
    fn want_of_memory_is_told_apart() {
        assert!(failure("kill -9 $$").out_of_memory);
        let card = failure("echo 'error: step 1: CUDA_ERROR_OUT_OF_MEMORY' >&2; exit 6");
        assert!(card.out_of_memory && card.reason.starts_with("step 1"), "{card:?}");
        assert!(
            failure("echo 'error: training does not fit on the card: out of GPU memory: 9 GiB' >&2; exit 6")
                .out_of_memory
        );
        // A shell holds more than 100 kB.
        let End::Failed(held) = shell("sleep 20", Some(100_000), &AtomicBool::new(false)) else { panic!() };
        assert!(held.out_of_memory && held.reason.contains("the budget is 97.7 KiB"), "{held:?}");
    }

    #[test]
    fn a_stop_reaches_the_child_once_and_it_is_waited_for() {
        let stop = AtomicBool::new(true);
        let end = shell("trap 'sleep 0.2; exit 130' TERM; while true; do sleep 0.05; done", None, &stop);
        assert!(matches!(end, End::Stopped), "{end:?}");
    }

    #[test]
    fn who_was_asked_to_stop_by_others_has_not_failed() {
        for script in ["exit 130", "kill -TERM $$"] {
            let end = shell(script, None, &AtomicBool::new(false));
            assert!(matches!(end, End::Stopped), "{script}: {end:?}");
        }
        // The others by their status alone: who started this test may have had it ignore them.
        let ended_by = |signal| std::os::unix::process::ExitStatusExt::from_raw(signal);
        assert!([1, 2, 15].map(ended_by).into_iter().all(was_interrupted));
        assert!(![6, 9, 11].map(ended_by).into_iter().any(was_interrupted));
    }

    #[test]
    fn what_a_stopped_child_started_ends_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while std::fs::read_to_string(&file).map_or(true, |pid| pid.trim().is_empty()) {
                    std::thread::sleep(LOOK_EVERY);
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(matches!(shell(&script, None, &stop), End::Stopped));
        });
        let pid = std::fs::read_to_string(&file).unwrap();
        let alive = || {
            // A process that has ended and that nobody waits for is a zombie, where this process adopts it.
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            state.is_ok_and(|state| !state.contains(") Z "))
        };
        let begun = Instant::now();
        while alive() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child's child lives on");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
