//! The least that answers on a unix socket: frames in, frames of one size out, on the runtime that the
//! daemon has, in a process of its own.

use std::{
    env,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixListener,
};

/// Set for the process that is the echo: the size of an answer and the socket.
const ECHO: &str = "TWILL_BENCH_ECHO";

/// Is the echo, for ever, in a process that was started as one.
pub fn serve_if_asked() -> Result<()> {
    let Ok(asked) = env::var(ECHO) else { return Ok(()) };
    let (answer, socket) = asked.split_once(' ').context("no socket")?;
    let answer: usize = answer.parse()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::bind(socket)?;
        say_ready()?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut length = [0; 4];
                while stream.read_exact(&mut length).await.is_ok() {
                    let mut body = vec![0; u32::from_be_bytes(length) as usize];
                    let came = stream.read_exact(&mut body).await;
                    let answer = vec![0; answer];
                    if came.is_err() || stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// Tells the other process that it can connect.
fn say_ready() -> Result<()> {
    Ok(std::io::stdout().lock().write_all(b"ready\n")?)
}

/// A connection to an echo, and its process.
pub(crate) struct Echo {
    child: Child,
    stream: UnixStream,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Echo {
    /// Starts one, for frames of these sizes, lengths included.
    pub(crate) fn start(socket: &Path, question: usize, answer: usize) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .env(ECHO, format!("{answer} {}", socket.display()))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut ready)?;
        let stream = UnixStream::connect(socket)?;
        let mut frame = vec![b' '; question];
        let body = u32::try_from(question.checked_sub(4).context("too small for a frame")?)?;
        frame[..4].copy_from_slice(&body.to_be_bytes());
        Ok(Self { child, stream, question: frame, answer: vec![0; answer] })
    }

    /// One question and its answer.
    pub(crate) fn call(&mut self) -> Result<()> {
        self.stream.write_all(&self.question)?;
        self.stream.read_exact(&mut self.answer)?;
        ensure!(self.answer.iter().all(|byte| *byte == 0), "another answer");
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
