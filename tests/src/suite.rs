//! The runner of kernel suites: each test a process of its own, in a sandbox of its own.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{process::read_lossy, sandbox, wait::wait_for};

/// Names the one test that a process has to run.
const TEST: &str = "TWILL_KERNEL_TEST";

/// How long one test may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Another limit in seconds, for the long forms of tests.
const LIMIT_VARIABLE: &str = "TWILL_TEST_LIMIT";

/// A test: its name and what it does.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// What it does; an error or a panic is a failure.
    pub run: fn() -> Result<()>,
}

/// A suite out of functions, each a [`Test`] by its own path.
#[macro_export]
macro_rules! tests {
    ($($first:ident $(:: $rest:ident)+),* $(,)?) => {
        &[$($crate::suite::Test {
            name: concat!(stringify!($first) $(, "::", stringify!($rest))+),
            run: $first $(:: $rest)+,
        }),*]
    };
}

/// `main` of a suite. `helpers` are not tests, but programs that a test starts with [`helper`].
pub fn main(tests: &'static [Test], helpers: &'static [Test]) -> ExitCode {
    main_after(|| Ok(()), tests, helpers)
}

/// The same for a suite that needs something which may be missing: `prepare` runs once, before the
/// first test, and without its success there is none.
pub fn main_after(
    prepare: fn() -> Result<()>,
    tests: &'static [Test],
    helpers: &'static [Test],
) -> ExitCode {
    if let Err(error) = sandbox::enter() {
        complain(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    if let Some(name) = env::var_os(TEST) {
        let name = name.to_string_lossy();
        let test = tests.iter().chain(helpers).find(|test| test.name == name);
        return test.map_or(ExitCode::FAILURE, run_one);
    }
    if let Err(error) = prepare() {
        complain(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // Two at a time: more only make timing worse on small machines.
    arguments.test_threads.get_or_insert(2);
    let trials = tests.iter().map(|test| Trial::test(test.name, || start(test.name)));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A test of something that all tests of a suite share.
pub struct SharedTest<T> {
    /// Its name.
    pub name: &'static str,
    /// What it does; an error or a panic is a failure.
    pub run: fn(&T) -> Result<()>,
}

/// A suite out of functions, each a [`SharedTest`] by its own path.
#[macro_export]
macro_rules! shared_tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$($crate::suite::SharedTest {
            name: concat!(stringify!($module), "::", stringify!($name)),
            run: $module::$name,
        }),*]
    };
}

/// `main` of a suite whose tests share what `start` makes: it takes long to start, and a test
/// touches only objects of its own. The tests are threads of one process, in one sandbox. Those of the names in `alone`
/// run with no other beside them: they count what depends on how busy the machine is.
pub fn main_sharing<T: Send + Sync + 'static>(
    start: fn() -> Result<T>,
    tests: &'static [SharedTest<T>],
    alone: &'static [&'static str],
) -> ExitCode {
    main_of_threads(start, tests, alone, None)
}

/// The same one after the other, in the order of the list: each may change all of what they share.
pub fn main_in_turn<T: Send + 'static>(
    start: fn() -> Result<T>,
    tests: &'static [SharedTest<Mutex<T>>],
) -> ExitCode {
    let start = move || start().map(Mutex::new);
    main_of_threads(start, tests, &[], Some(1))
}

fn main_of_threads<T: Send + Sync + 'static>(
    start: impl FnOnce() -> Result<T>,
    tests: &'static [SharedTest<T>],
    alone: &'static [&'static str],
    threads: Option<usize>,
) -> ExitCode {
    if let Err(error) = sandbox::enter() {
        complain(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    if let Some(name) = alone.iter().find(|name| !tests.iter().any(|test| test.name == **name)) {
        complain(&format!("there is no test {name} to run alone"));
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = threads.or(arguments.test_threads);
    let trial = |test: &'static SharedTest<T>, shared: Option<Arc<T>>| {
        Trial::test(test.name, move || {
            let shared = shared.ok_or("nothing was started for a list")?;
            let run = || (test.run)(&shared);
            let outcome = if alone.contains(&test.name) { by_itself(run) } else { in_company(run) };
            outcome.map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    if arguments.list {
        let trials = tests.iter().map(|test| trial(test, None)).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let shared = match start() {
        Ok(shared) => Arc::new(shared),
        Err(error) => {
            complain(&format!("{error:#}"));
            complain_logs();
            return ExitCode::FAILURE;
        }
    };
    let trials = tests.iter().map(|test| trial(test, Some(Arc::clone(&shared)))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        complain_logs();
    }
    drop(shared);
    conclusion.exit_code()
}

/// Held by each test that is a thread of this process: shared, or as the only one.
static MACHINE: RwLock<()> = RwLock::new(());

fn by_itself<T>(run: impl FnOnce() -> T) -> T {
    let _machine = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run()
}

fn in_company<T>(run: impl FnOnce() -> T) -> T {
    let _machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run()
}

/// A command that runs one of the suite's helpers (or tests) in a sandbox of its own.
pub fn helper(name: &str) -> Result<Command> {
    let mut command = sandbox::nested(env::current_exe()?);
    command.env(TEST, name);
    Ok(command)
}

/// One test, inside its own sandbox.
fn run_one(test: &Test) -> ExitCode {
    match panic::catch_unwind(AssertUnwindSafe(test.run)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => complain(&format!("{error:#}")),
        // The panic's own message is out already.
        Err(_) => {}
    }
    complain_logs();
    ExitCode::FAILURE
}

/// What programs wrote last.
fn complain_logs() {
    for (log, end) in sandbox::logs(40) {
        complain(&format!("---- {} (end) ----\n{end}", log.display()));
    }
}

/// One test's process, from outside.
fn start(name: &str) -> Result<(), Failed> {
    run_process(name).map_err(|error| Failed::from(format!("{error:#}")))
}

fn run_process(name: &str) -> Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let output = PathBuf::from(format!("/run/test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let file = File::create(&output).context("cannot write a test's output")?;
    let mut command = helper(name)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = Guard(command.spawn().context("cannot start a test")?);
    let limit = env::var(LIMIT_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
    let limit = limit.map_or(LIMIT, Duration::from_secs);
    let status = wait_for("the test", limit, || child.0.try_wait()?.context("it still runs"));
    drop(child);
    let text = read_lossy(&output);
    let _ = fs::remove_file(&output);
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(anyhow::anyhow!("{status}\n{text}")),
        Err(error) => Err(error.context(text)),
    }
}

/// A child that does not outlive its owner.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
