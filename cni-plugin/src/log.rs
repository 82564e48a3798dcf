//! Log lines: to standard error, and to a file if the configuration names one.
//!
//! A subscriber of our own costs nothing where nothing is logged; nothing is opened before the
//! first line.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::fcntl::OFlag;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

use crate::netconf::LogConfig;

/// From here on, this call's log lines go where `config` says. `call` begins each line, and at the
/// level of traces the time since the program's start ends it.
pub(crate) fn start(config: &LogConfig, call: String, started: Instant) {
    let logger = Logger { level: config.level, file: config.file.clone(), call, started };
    // Set already: a second call in one process, which only tests make.
    let _ = tracing::subscriber::set_global_default(logger);
}

struct Logger {
    level: LevelFilter,
    file: Option<PathBuf>,
    call: String,
    started: Instant,
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let Line { message, mut fields } = line;
        if self.level == LevelFilter::TRACE {
            // Writing to a String cannot fail.
            let _ = write!(fields, " after_us={}", self.started.elapsed().as_micros());
        }
        let level = event.metadata().level();
        let call = &self.call;
        // One write per line, so that lines of calls at the same time do not mix. There is nobody
        // to tell if it fails.
        let _ =
            std::io::stderr().write_all(format!("{level} {call}: {message}{fields}\n").as_bytes());
        if let Some(path) = &self.file
            && let Ok(mut file) = open(path)
        {
            let now = jiff::Timestamp::now();
            let _ =
                file.write_all(format!("{now:.6} {level} {call}: {message}{fields}\n").as_bytes());
        }
    }

    // Spans do not occur in a program that does one thing.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Opens the log for one line. A FIFO that nobody reads, or reads fast enough, keeps no call waiting.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    File::options().append(true).create(true).custom_flags(flags.bits()).open(path)
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
