//! Datagrams over several sockets, from one thread: each system call that the load maker does not make is the server's.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::load::{Args, LOST, Outcome, Questions, any};
use super::message::{Query, id};

/// Time between two looks for questions that are lost.
const LOOK: Duration = Duration::from_millis(50);

/// One of the sockets.
struct Lane {
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Numbers of the slots in which no question waits.
    free: Vec<u16>,
}

/// Where a question waits.
#[derive(Default)]
struct Slot {
    /// Of its last query. A late answer to an earlier one has another.
    id: u16,
    waits: Option<(Rc<Query>, Instant)>,
}

impl Lane {
    fn new(args: &Args, slots: u16) -> Result<Self> {
        let socket = UdpSocket::bind((any(args.server), 0))?;
        socket.connect(args.server).with_context(|| format!("connect to {}", args.server))?;
        socket.set_nonblocking(true)?;
        let all = (0..slots).map(|number| Slot { id: number, waits: None }).collect();
        Ok(Self { socket, slots: all, free: (0..slots).rev().collect() })
    }

    /// Asks, if a slot is free; whether the question is on its way.
    fn ask(&mut self, query: Rc<Query>, buffer: &mut Vec<u8>) -> bool {
        let Some(number) = self.free.pop() else { return false };
        let step = u16::try_from(self.slots.len()).unwrap_or_default();
        let Some(slot) = self.slots.get_mut(usize::from(number)) else { return false };
        // Modulo the number of slots, an id is the slot's number.
        slot.id = slot.id.checked_add(step).unwrap_or(number);
        // One that can't be sent is lost like one that the network loses.
        let _ = self.socket.send(query.with_id(slot.id, buffer));
        slot.waits = Some((query, Instant::now()));
        true
    }

    /// The question that an answer belongs to, and since when it waits.
    fn take(&mut self, answer: &[u8]) -> Option<(Rc<Query>, Instant)> {
        let id = id(answer)?;
        let number = id.checked_rem(u16::try_from(self.slots.len()).ok()?)?;
        let slot = self.slots.get_mut(usize::from(number)).filter(|slot| slot.id == id)?;
        let waited = slot.waits.take()?;
        self.free.push(number);
        Some(waited)
    }

    /// Gives up what has waited too long; how many.
    fn give_up(&mut self, now: Instant) -> usize {
        let mut lost = 0;
        for (slot, number) in self.slots.iter_mut().zip(0..) {
            if slot.waits.as_ref().is_some_and(|(_, since)| now - *since >= LOST) {
                slot.waits = None;
                self.free.push(number);
                lost += 1;
            }
        }
        lost
    }

    fn waiting(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// The sockets, and what came of the questions.
struct Load<'a> {
    lanes: Vec<Lane>,
    questions: &'a Questions,
    outcome: Outcome,
    /// Until when questions are asked.
    end: Instant,
    buffer: Vec<u8>,
    /// Whether each answer's time is kept.
    timed: bool,
    looked: Instant,
}

impl<'a> Load<'a> {
    fn new(args: &Args, slots: u16, time: Duration, questions: &'a Questions, timed: bool) -> Result<Self> {
        let sockets = args.sockets.min(slots);
        let share = |lane: u16| slots / sockets + u16::from(lane < slots % sockets);
        let lanes = (0..sockets).map(|lane| Lane::new(args, share(lane))).collect::<Result<_>>()?;
        let (buffer, looked) = (Vec::new(), Instant::now());
        Ok(Self { lanes, questions, outcome: Outcome::default(), end: looked + time, buffer, timed, looked })
    }

    fn waiting(&self) -> usize {
        self.lanes.iter().map(Lane::waiting).sum()
    }

    /// Waits until answers come, or for so long, and takes them; `again` asks another question for each.
    fn answers(&mut self, wait: Duration, again: bool) -> Result<()> {
        let mut fds: Vec<PollFd<'_>> =
            self.lanes.iter().map(|lane| PollFd::new(lane.socket.as_fd(), PollFlags::POLLIN)).collect();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or_default()).collect();
        drop(fds);
        let mut answer = [0; 4096];
        for (lane, _) in self.lanes.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            loop {
                let length = match lane.socket.recv(&mut answer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // Nobody listens, as the server's host says of one query: it is lost in its time.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                    Err(error) => return Err(error).context("receive an answer"),
                };
                let answer = answer.get(..length).unwrap_or_default();
                // One that comes when its question is lost already is no answer.
                let Some((query, since)) = lane.take(answer) else { continue };
                let now = Instant::now();
                let checked = query.check(answer);
                if self.timed && checked.is_ok() {
                    self.outcome.micros.push((now - since).as_secs_f64() * 1e6);
                }
                self.outcome.note(&query, checked, now < self.end);
                if again
                    && now < self.end
                    && let Some(query) = self.questions.next()
                {
                    lane.ask(query, &mut self.buffer);
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self) {
        let now = Instant::now();
        if now - self.looked >= LOOK {
            self.looked = now;
            self.outcome.lost += self.lanes.iter_mut().map(|lane| lane.give_up(now)).sum::<usize>();
        }
    }

    /// Waits for what is still on its way.
    fn finish(mut self, began: Instant) -> Result<Outcome> {
        // The questions may have come to their end before the time did.
        self.end = self.end.min(Instant::now());
        self.outcome.took = self.end - began;
        while self.waiting() > 0 {
            self.answers(LOOK, false)?;
            self.give_up();
        }
        Ok(self.outcome)
    }
}

/// Keeps a number of questions on their way.
pub fn closed(args: &Args, time: Duration, questions: &Questions) -> Result<Outcome> {
    let mut load = Load::new(args, args.outstanding, time, questions, false)?;
    let began = Instant::now();
    loop {
        // At the beginning, and after a loss.
        for lane in &mut load.lanes {
            while !lane.free.is_empty()
                && let Some(query) = questions.next()
            {
                lane.ask(query, &mut load.buffer);
            }
        }
        load.answers(LOOK, true)?;
        load.give_up();
        if Instant::now() >= load.end || load.waiting() == 0 {
            return load.finish(began);
        }
    }
}

/// Asks so many questions a second.
pub fn steady(args: &Args, rate: u32, time: Duration, questions: &Questions) -> Result<Outcome> {
    // As many as are asked until the first of them is lost.
    let slots = u16::try_from(rate + rate / 2 + 16).unwrap_or(u16::MAX / 2);
    let mut load = Load::new(args, slots, time, questions, true)?;
    let sockets = load.lanes.len();
    let (began, pause) = (Instant::now(), Duration::from_secs(1) / rate);
    let mut due = began;
    for number in 0_usize.. {
        let now = Instant::now();
        let Some(query) = (now < load.end).then(|| questions.next()).flatten() else { break };
        if let Some(lane) = load.lanes.get_mut(number % sockets)
            && !lane.ask(query, &mut load.buffer)
        {
            load.outcome.lost += 1;
        }
        due += pause;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            load.answers(left.min(LOOK), false)?;
            load.give_up();
            if Instant::now() >= due {
                break;
            }
        }
    }
    load.finish(began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::cast::Workload;
    use crate::dns::load::tests::args;

    #[test]
    fn an_id_names_its_slot_for_ever() {
        let args = args("127.0.0.1:9".parse().unwrap(), "cluster-ip", &[]);
        let mut lane = Lane::new(&args, 3).unwrap();
        let query = Rc::new(Query::new(Workload::ClusterIp.question(10, 0, 0)));
        for _ in 0..70_000 {
            assert!(lane.ask(Rc::clone(&query), &mut Vec::new()));
            let waiting = lane.slots.iter().find(|slot| slot.waits.is_some()).unwrap().id;
            assert!(lane.take(&waiting.wrapping_add(3).to_be_bytes()).is_none(), "another one's id");
            assert!(lane.take(&waiting.to_be_bytes()).is_some());
            assert!(lane.take(&waiting.to_be_bytes()).is_none(), "a second answer");
        }
        assert_eq!(lane.waiting(), 0);
    }

    #[test]
    fn what_waits_too_long_is_lost() {
        let args = args("127.0.0.1:9".parse().unwrap(), "cluster-ip", &[]);
        let mut lane = Lane::new(&args, 2).unwrap();
        let query = Rc::new(Query::new(Workload::ClusterIp.question(10, 0, 0)));
        assert!(lane.ask(Rc::clone(&query), &mut Vec::new()) && lane.ask(Rc::clone(&query), &mut Vec::new()));
        assert!(!lane.ask(query, &mut Vec::new()), "no slot is free");
        assert_eq!(lane.give_up(Instant::now()), 0);
        assert_eq!(lane.give_up(Instant::now() + LOST), 2);
        assert_eq!(lane.waiting(), 0);
    }
}
