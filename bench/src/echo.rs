//! The least that answers on a unix socket: frames in, frames of one size out, on the runtime that the
//! daemon has, in a process of its own. Asked to, it makes as many octets durable before it answers as
//! an allocation does, with the storage library alone: less than that cannot give an address.

use std::{
    env,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixListener,
};
use twill_ipam_store::{SledStore, Store};

/// Set for the process that is the echo: how it is to be one, as JSON.
const ECHO: &str = "TWILL_BENCH_ECHO";

/// What an echo is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Orders {
    socket: PathBuf,
    /// Octets of an answer.
    answer: usize,
    durable: Option<Durable>,
}

/// What each question makes durable: the entries of an allocation, then those of its release, in turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Durable {
    /// The database's.
    pub(crate) directory: PathBuf,
    /// Octets of a record, a block, and what belongs to the store as a whole.
    pub(crate) record: usize,
    pub(crate) block: usize,
    pub(crate) meta: usize,
}

/// Is the echo, for ever, in a process that was started as one.
pub fn serve_if_asked() -> Result<()> {
    let Ok(asked) = env::var(ECHO) else { return Ok(()) };
    let orders: Orders = serde_json::from_str(&asked)?;
    let mut durable = orders.durable.map(Database::open).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::bind(&orders.socket)?;
        say_ready()?;
        let (stream, _) = listener.accept().await?;
        // On a worker, as the daemon's connections are.
        let served = tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut length = [0; 4];
            while stream.read_exact(&mut length).await.is_ok() {
                let mut body = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut body).await?;
                if let Some(database) = &mut durable {
                    database.write()?;
                }
                stream.write_all(&vec![0; orders.answer]).await?;
            }
            anyhow::Ok(())
        });
        served.await?
    })
}

/// The storage library, and nothing above it.
struct Database {
    store: SledStore,
    sizes: Durable,
    turn: u64,
}

impl Database {
    fn open(sizes: Durable) -> Result<Self> {
        Ok(Self { store: SledStore::open(&sizes.directory)?, sizes, turn: 0 })
    }

    fn write(&mut self) -> Result<()> {
        let filled = |size: usize| {
            let mut value = vec![0; size];
            value[..8].copy_from_slice(&self.turn.to_le_bytes());
            Some(value)
        };
        let record = b"r\x04\x0a\x00\x00\x01".to_vec();
        let block = (b"b\x04\x0a\x00\x00\x00\x1a".to_vec(), filled(self.sizes.block));
        let batch = match self.turn.is_multiple_of(2) {
            true => {
                let meta = (b"m".to_vec(), filled(self.sizes.meta));
                vec![(record, filled(self.sizes.record)), meta, block]
            }
            false => vec![(record, None), block],
        };
        self.turn += 1;
        Ok(self.store.commit(&batch)?)
    }
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
    pub(crate) fn start(
        socket: &Path,
        question: usize,
        answer: usize,
        durable: Option<Durable>,
    ) -> Result<Self> {
        let orders = Orders { socket: socket.to_owned(), answer, durable };
        let mut child = Command::new(env::current_exe()?)
            .env(ECHO, serde_json::to_string(&orders)?)
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
