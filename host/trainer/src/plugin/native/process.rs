//! The process of a native plugin, as the host sees it: started, fed, listened to under a deadline, and ended whatever it
//! does.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::wire::Message;

/// The hidden command.
pub const COMMAND: &str = "native-plugin-process";
/// How often the deadline and the output are looked at.
const TICK: Duration = Duration::from_millis(20);

/// What came from the plugin's process.
pub(super) enum Heard {
    /// A message.
    Message(Message),
    /// Nothing more will come.
    End,
    /// Something that is no message.
    Nonsense,
    /// The time is over.
    Late,
    /// It printed more than it may.
    Loud,
}

/// The process. It is killed when this is dropped.
pub(super) struct Process {
    child: Child,
    input: Option<mpsc::Sender<Message>>,
    messages: mpsc::Receiver<io::Result<Message>>,
    printed: Printed,
    /// Time spent waiting for the plugin so far.
    pub waited: Duration,
}

impl Process {
    /// Starts `program` with the hidden command, in a group of its own, without the user's environment. It may send
    /// messages of `message_bytes`, and print `printed_bytes`.
    pub fn start(program: &Path, message_bytes: usize, printed_bytes: usize) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (input, to_write) = mpsc::channel::<Message>();
        // A plugin that doesn't read must not keep the host from looking at the clock.
        thread::spawn(move || while to_write.recv().is_ok_and(|message| message.write(&mut stdin).is_ok()) {});
        let mut output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let printed = Printed::new(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?, printed_bytes)?;
        let (sender, messages) = mpsc::sync_channel(4);
        thread::spawn(move || {
            // Ends with the process, whose death closes the pipe, or when nobody listens any more.
            while let Some(message) = Message::read(&mut output, message_bytes).transpose() {
                let broken = message.is_err();
                if sender.send(message).is_err() || broken {
                    break;
                }
            }
        });
        Ok(Self { child, input: Some(input), messages, printed, waited: Duration::ZERO })
    }

    /// Sends a message. If the process is gone or doesn't read, that shows when it is listened to.
    pub fn send(&mut self, message: Message) {
        if let Some(input) = &self.input {
            let _ = input.send(message);
        }
    }

    /// Waits for the next message, until all waiting together took `limit`.
    pub fn hear(&mut self, limit: Duration) -> Heard {
        let started = Instant::now();
        let heard = loop {
            let left = limit.saturating_sub(self.waited + started.elapsed());
            if left.is_zero() {
                break Heard::Late;
            }
            let heard = self.messages.recv_timeout(left.min(TICK));
            match heard {
                Ok(Ok(message)) => break Heard::Message(message),
                _ if self.printed.is_too_much() => break Heard::Loud,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => break Heard::End,
                Ok(Err(_)) => break Heard::Nonsense,
                Err(mpsc::RecvTimeoutError::Disconnected) => break Heard::End,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        };
        self.waited += started.elapsed();
        heard
    }

    /// Ends the process and all that it started, and gives how it ended if it did so by itself, within a moment.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.input = None;
        let patience = Instant::now();
        let mut status = None;
        while status.is_none() && patience.elapsed() < Duration::from_millis(500) {
            status = self.child.try_wait().ok().flatten();
            if status.is_none() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.kill();
        status
    }

    /// Whether it printed more than it may before it sent what was heard last.
    pub fn is_loud(&mut self) -> bool {
        self.printed.is_too_much()
    }

    /// What it printed before it sent what was heard last, and perhaps more.
    pub fn printed(&mut self) -> String {
        self.printed.collect();
        String::from_utf8_lossy(&self.printed.text).into_owned()
    }

    /// Kills the process and its group.
    fn kill(&mut self) {
        let group = libc::pid_t::try_from(self.child.id()).unwrap_or(0);
        if group > 1 && matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: signals the process group that this struct started; its leader has not been waited for, so that
            // its number belongs to nobody else.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process prints. It is taken out of the pipe by who asks for it, and not by a thread that may come to it late: all that
/// was printed before a message was sent is in the pipe when the message is heard.
struct Printed {
    pipe: ChildStderr,
    text: Vec<u8>,
    /// Most bytes of it.
    limit: usize,
    /// Whether there was more.
    over: bool,
}

impl Printed {
    fn new(pipe: ChildStderr, limit: usize) -> io::Result<Self> {
        // Of the reading end alone: the process writes as before.
        // SAFETY: sets a flag of a descriptor that this struct owns; takes numbers only.
        if unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { pipe, text: Vec::new(), limit, over: false })
    }

    /// Takes what is in the pipe, without waiting for more.
    fn collect(&mut self) {
        let mut buffer = [0; 4096];
        while !self.over {
            match self.pipe.read(&mut buffer) {
                Ok(count @ 1..) => {
                    let room = self.limit - self.text.len();
                    self.text.extend_from_slice(&buffer[..count.min(room)]);
                    self.over = count > room;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Closed, or empty for now.
                Ok(0) | Err(_) => break,
            }
        }
    }

    fn is_too_much(&mut self) -> bool {
        self.collect();
        self.over
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a process ended, in words.
pub(super) fn in_words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = match signal {
                libc::SIGSEGV => "segmentation fault",
                libc::SIGBUS => "bus error",
                libc::SIGABRT => "abort",
                libc::SIGFPE => "arithmetic error",
                libc::SIGILL => "illegal instruction",
                libc::SIGXCPU => "processor time over",
                libc::SIGKILL => "killed",
                libc::SIGXFSZ => "it wrote a file",
                _ => "",
            };
            let name = if name.is_empty() { String::new() } else { format!(", {name}") };
            format!("it crashed (signal {signal}{name})")
        }
        (None, Some(code)) => format!("it ended its process with exit code {code} in the middle"),
        (None, None) => "its process is gone".into(),
    }
}
