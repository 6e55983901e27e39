//! Questions, asked as fast as answers come or at a steady rate.

use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::cast::{Question, Workload};
use super::message::{Query, Wrong, id};
use super::{tcp, udp};

/// A question that has no answer after that long is lost: a resolver would ask again.
pub const LOST: Duration = Duration::from_secs(1);

/// Whom to ask, and what.
#[derive(clap::Args)]
pub struct Args {
    /// Address and port of the server.
    #[arg(long)]
    pub server: SocketAddr,
    /// How many Services there are.
    #[arg(long, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    services: u16,
    /// What the questions are about.
    #[arg(long)]
    workload: Workload,
    /// Questions that wait for their answers at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub outstanding: u16,
    /// Questions a second, however many of them wait.
    #[arg(long, conflicts_with_all = ["outstanding", "tcp"], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// UDP sockets over which they are asked, in turn: the server sees as many clients.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub sockets: u16,
    /// Ask over TCP: as many connections as questions that wait.
    #[arg(long)]
    tcp: bool,
    /// How long new questions are asked, seconds.
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    seconds: f64,
    /// The most questions.
    #[arg(long, default_value_t = 10_000_000)]
    questions: usize,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.01..=600.0).contains(&value) { Ok(value) } else { Err("not within 0.01 and 600".to_owned()) }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Right answers while new questions were asked.
    pub right: usize,
    /// Right answers that came when no more were asked.
    pub after: usize,
    /// Questions without an answer.
    pub lost: usize,
    /// Wrong answers.
    wrong: usize,
    first_wrong: Option<String>,
    /// How long new questions were asked.
    pub took: Duration,
    /// From a question to its answer, microseconds, where that was asked for.
    pub micros: Vec<f64>,
}

impl Outcome {
    /// Notes an answer, which came in time or after that.
    pub fn note(&mut self, query: &Query, checked: Result<(), Wrong>, in_time: bool) {
        match checked {
            Ok(()) if in_time => self.right += 1,
            Ok(()) => self.after += 1,
            Err(wrong) => {
                self.wrong += 1;
                self.first_wrong.get_or_insert_with(|| format!("{wrong:?} for {:?}", query.question()));
            }
        }
    }

    /// Both together, which took place at the same time.
    pub fn join(self, other: Self) -> Self {
        Self {
            right: self.right + other.right,
            after: self.after + other.after,
            lost: self.lost + other.lost,
            wrong: self.wrong + other.wrong,
            first_wrong: self.first_wrong.or(other.first_wrong),
            took: self.took.max(other.took),
            micros: [self.micros, other.micros].concat(),
        }
    }

    /// Fails with the first answer that was wrong, or if there was no right one.
    pub fn judge(&self) -> Result<()> {
        if let Some(first) = &self.first_wrong {
            let all = self.right + self.after + self.wrong;
            bail!("{} of {all} answers are wrong, the first one: {first}", self.wrong);
        }
        ensure!(self.right > 0, "no answer came, {} questions are lost", self.lost);
        Ok(())
    }
}

/// The questions, one after the other.
pub struct Questions {
    pool: Vec<Rc<Query>>,
    next: Cell<usize>,
    most: usize,
    workload: Workload,
    services: usize,
    run: u64,
}

impl Questions {
    fn new(args: &Args, first: usize) -> Self {
        let services = usize::from(args.services);
        let pool = (0..args.workload.questions(services).unwrap_or_default())
            .map(|number| Rc::new(Query::new(args.workload.question(services, number, 0))));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = now.as_secs() << 30 | u64::from(now.subsec_nanos());
        let (pool, next) = (pool.collect(), Cell::new(first));
        let most = args.questions.saturating_add(first);
        Self { pool, next, most, workload: args.workload, services, run }
    }

    /// The next one, if there is to be one more.
    pub fn next(&self) -> Option<Rc<Query>> {
        let number = self.next.get();
        self.next.set(number + 1);
        if number >= self.most {
            return None;
        }
        match self.pool.get(number % self.pool.len().max(1)) {
            Some(query) => Some(Rc::clone(query)),
            None => Some(Rc::new(Query::new(self.workload.question(self.services, number, self.run)))),
        }
    }
}

/// Asks, and prints what came of it.
pub fn run(args: &Args) -> Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    // Connections begin at different places of the list.
    let questions = |client: usize| Questions::new(args, client * 97);
    let outcome = match (args.tcp, args.rate) {
        (true, _) => tcp::run(args.server, usize::from(args.outstanding), time, &questions)?,
        (false, None) => udp::closed(args, time, &questions(0))?,
        (false, Some(rate)) => udp::steady(args, rate, time, &questions(0))?,
    };
    outcome.judge()?;
    println!(
        "{}",
        json!({
            "right": outcome.right, "all": outcome.right + outcome.after, "lost": outcome.lost,
            "seconds": outcome.took.as_secs_f64(), "us": outcome.micros,
        })
    );
    Ok(())
}

/// Whom to wait for.
#[derive(clap::Args)]
pub struct ReadyArgs {
    /// Address and port of the server.
    #[arg(long)]
    server: SocketAddr,
    /// How many Services there are.
    #[arg(long, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    services: u16,
    /// How long it may take, seconds.
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

/// Waits until a server answers each question of the mix rightly: until it knows every Service.
pub fn ready(args: &ReadyArgs) -> Result<()> {
    let services = usize::from(args.services);
    let deadline = Instant::now() + Duration::from_secs(args.limit);
    for number in 0..Workload::Mix.questions(services).unwrap_or_default() {
        let question = Workload::Mix.question(services, number, 0);
        while let Err(error) = ask(args.server, &question) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("not ready after {} s: {question:?}", args.limit));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Asks one question once.
fn ask(server: SocketAddr, question: &Question) -> Result<()> {
    let socket = UdpSocket::bind((any(server), 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOST))?;
    let query = Query::new(question.clone());
    socket.send(query.with_id(1, &mut Vec::new()))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let answer = buffer.get(..length).unwrap_or_default();
    ensure!(id(answer) == Some(1), "an answer to another query");
    query.check(answer).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))
}

/// The address from which an address can be reached, whichever that is.
pub fn any(server: SocketAddr) -> std::net::IpAddr {
    match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::dns::message::tests::answer;

    /// Arguments for a server.
    pub fn args(server: SocketAddr, workload: &str, words: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let server = server.to_string();
        let base = ["load", "--services", "10", "--workload", workload, "--server", &server];
        let cli = <Cli as clap::Parser>::parse_from([&base[..], words].concat());
        cli.args
    }

    /// A server of cluster IPs; `made` makes its answer to the n-th query, if any, of the right one.
    pub fn serve(made: impl Fn(usize, Vec<u8>) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let all: Vec<Question> = (0..10).map(|n| Workload::ClusterIp.question(10, n, 0)).collect();
            let mut buffer = [0; 512];
            for n in 0.. {
                let (length, peer) = socket.recv_from(&mut buffer).unwrap();
                let query = &buffer[..length];
                let asked = all.iter().find(|question| {
                    Query::new((*question).clone()).with_id(0, &mut Vec::new())[2..] == query[2..]
                });
                let address = std::net::Ipv4Addr::from(*asked.unwrap().addresses.start());
                if let Some(bytes) = made(n, answer(query, 0, 1, &address.octets())) {
                    socket.send_to(&bytes, peer).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn right_answers_are_counted() {
        let server = serve(|_, right| Some(right));
        run(&args(server, "cluster-ip", &["--seconds", "0.2", "--outstanding", "8", "--sockets", "3"]))
            .unwrap();
        run(&args(server, "cluster-ip", &["--seconds", "0.2", "--rate", "500", "--sockets", "2"])).unwrap();
    }

    #[test]
    fn one_wrong_answer_fails_the_run() {
        for words in [["--outstanding", "8"], ["--rate", "1000"]] {
            let server = serve(|n, mut right| {
                if n == 50 {
                    *right.last_mut().unwrap() ^= 1;
                }
                Some(right)
            });
            let error =
                run(&args(server, "cluster-ip", &[&["--seconds", "0.3"][..], &words].concat())).unwrap_err();
            assert!(error.to_string().starts_with("1 of "), "{error}");
            assert!(error.to_string().contains("Record for"), "{error}");
        }
    }

    #[test]
    fn silence_is_no_success() {
        let server = serve(|_, _| None);
        let error =
            run(&args(server, "cluster-ip", &["--seconds", "0.05", "--outstanding", "8"])).unwrap_err();
        assert_eq!(error.to_string(), "no answer came, 8 questions are lost");
    }

    #[test]
    fn questions_are_bounded() {
        let args = args("127.0.0.1:1".parse().unwrap(), "cluster-ip", &["--questions", "3"]);
        let questions = Questions::new(&args, 5);
        assert_eq!((0..5).filter(|_| questions.next().is_some()).count(), 3);
    }
}
