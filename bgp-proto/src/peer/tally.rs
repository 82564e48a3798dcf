//! What went wrong on a peer's sessions: all of it is counted, some of it is told.

use std::{collections::BTreeMap, time::Duration};

use twill_types::hex;

use crate::{
    NotificationCount, Time, UpdateErrorCount,
    wire::{Disposition, Fault, Notification, Routes, UpdateIn, code},
};

/// So many errors in UPDATEs are told one by one in a window; the others as a number at its end.
const TOLD: u32 = 5;
/// Without it a peer that sends broken UPDATEs at line rate writes the log full.
const WINDOW: Duration = Duration::from_secs(60);
/// So many routes of a broken UPDATE are named.
const NAMED: usize = 20;
/// So many octets of a broken UPDATE are told: all that a message has which is not an extended one.
const EVIDENCE: usize = 4096;
/// Stands for all numbers that no RFC names: a peer must not make as many counters as it likes.
const OTHER: u8 = 255;

/// The routes that an UPDATE is about, for people.
pub(crate) fn named_routes(update: &UpdateIn) -> String {
    let announced = update.announced.iter().map(|(_, routes)| routes);
    let all = || announced.clone().chain([&update.withdrawn]);
    let count: usize = all().map(Routes::len).sum();
    let first = all().flat_map(Routes::prefixes).take(NAMED);
    let mut named = first.map(|prefix| prefix.to_string()).collect::<Vec<_>>().join(", ");
    if count > NAMED {
        named += &format!(" and {} more", count - NAMED);
    }
    named
}

/// An UPDATE's body in hexadecimal digits, for people.
pub(crate) fn evidence(body: &[u8]) -> String {
    let mut digits = hex(body.get(..EVIDENCE).unwrap_or(body));
    if body.len() > EVIDENCE {
        digits += "...";
    }
    digits
}

/// Counted since the peer was configured.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// By direction (sent), code and subcode.
    notifications: BTreeMap<(bool, u8, u8), u64>,
    /// By what was done, and the attribute.
    update_errors: BTreeMap<(Disposition, u8), u64>,
    window: Option<Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    ends: Time,
    told: u32,
    untold: u64,
}

impl Tally {
    pub(crate) fn notification(&mut self, sent: bool, notification: &Notification) {
        let (code, subcode) = (notification.code, notification.subcode);
        let named = (code::HEADER..=code::SEND_HOLD_TIMER).contains(&code) && subcode <= 11;
        let (code, subcode) = if named { (code, subcode) } else { (OTHER, OTHER) };
        *self.notifications.entry((sent, code, subcode)).or_default() += 1;
    }

    /// Counts an error; says whether it is to be told by itself.
    pub(crate) fn update_error(&mut self, fault: &Fault, now: Time) -> bool {
        // The codec reads these; of the others it says at most that they are there twice.
        let attribute = if fault.attribute <= 40 { fault.attribute } else { OTHER };
        *self.update_errors.entry((fault.disposition, attribute)).or_default() += 1;
        // One in which all was told has no timer that would end it.
        self.window = self.window.filter(|window| window.untold > 0 || window.ends > now);
        let fresh = Window { ends: now + WINDOW, told: 0, untold: 0 };
        let window = self.window.get_or_insert(fresh);
        if window.told < TOLD {
            window.told += 1;
            true
        } else {
            window.untold += 1;
            false
        }
    }

    /// When the number of errors that were not told is due.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.window.filter(|window| window.untold > 0).map(|window| window.ends)
    }

    /// Ends the window if its time has come; how many errors were not told in it, if there are any.
    pub(crate) fn expire(&mut self, now: Time) -> Option<u64> {
        let window = self.window.take_if(|window| window.ends <= now)?;
        (window.untold > 0).then_some(window.untold)
    }

    pub(crate) fn notifications(&self) -> Vec<NotificationCount> {
        let counts = self.notifications.iter();
        counts
            .map(|((sent, code, subcode), count)| NotificationCount {
                sent: *sent,
                code: *code,
                subcode: *subcode,
                count: *count,
            })
            .collect()
    }

    pub(crate) fn update_errors(&self) -> Vec<UpdateErrorCount> {
        let counts = self.update_errors.iter();
        counts
            .map(|((disposition, attribute), count)| UpdateErrorCount {
                disposition: disposition.name(),
                attribute: *attribute,
                count: *count,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(attribute: u8) -> Fault {
        Fault { attribute, disposition: Disposition::TreatAsWithdraw, text: "it is broken" }
    }

    #[test]
    fn the_first_errors_of_a_minute_are_told_and_the_others_counted() {
        let mut tally = Tally::default();
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let told = |tally: &mut Tally, second| {
            (0..100).filter(|_| tally.update_error(&fault(2), at(second))).count()
        };
        assert_eq!(told(&mut tally, 1), 5);
        assert_eq!((tally.deadline(), tally.expire(at(60))), (Some(at(61)), None));
        assert_eq!((tally.expire(at(61)), tally.deadline()), (Some(95), None));
        assert_eq!(told(&mut tally, 62), 5);
        assert_eq!(tally.update_errors().first().map(|error| error.count), Some(200));
    }

    /// A window in which all was told ends without a word, and without a timer.
    #[test]
    fn few_errors_need_no_timer() {
        let mut tally = Tally::default();
        assert!(tally.update_error(&fault(2), Time::ZERO));
        assert_eq!(tally.deadline(), None);
        assert_eq!(tally.expire(Time::ZERO + WINDOW), None);
        assert!(tally.window.is_none());
    }

    #[test]
    fn a_peer_makes_no_counters_of_its_own() {
        let mut tally = Tally::default();
        for number in 0..=u8::MAX {
            tally.notification(false, &Notification::new(number, number));
            tally.notification(false, &Notification::new(code::CEASE, number));
            tally.update_error(&fault(number), Time::ZERO);
        }
        assert_eq!((tally.notifications.len(), tally.update_errors.len()), (8 + 11 + 1, 42));
        let all: u64 = tally.notifications().iter().map(|count| count.count).sum();
        assert_eq!(all, 512);
    }
}
