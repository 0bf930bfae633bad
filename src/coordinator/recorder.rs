//! [`Recorder`]: versions of a record that become durable in order, one write at a time, and what is done then.

/// Versions of a record, and what waits for them.
#[derive(Debug)]
pub(super) struct Recorder<T> {
    wanted: u64,
    durable: u64,
    on_its_way: bool,
    then: Vec<(u64, T)>,
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Self { wanted: 0, durable: 0, on_its_way: false, then: vec![] }
    }
}

impl<T> Recorder<T> {
    /// There is another version; `then` is to be done once it is durable.
    pub(super) fn changed(&mut self, then: T) {
        self.wanted += 1;
        self.then.push((self.wanted, then));
    }

    /// `then` is to be done once the last version is durable; it comes back if it is.
    pub(super) fn behind(&mut self, then: T) -> Option<T> {
        if self.durable == self.wanted {
            return Some(then);
        }
        self.then.push((self.wanted, then));
        None
    }

    /// The number of the version that is to be written now, if there is one that is not, and none is on its way.
    pub(super) fn begin(&mut self) -> Option<u64> {
        let due = !self.on_its_way && self.durable != self.wanted;
        self.on_its_way |= due;
        due.then_some(self.wanted)
    }

    /// A write has ended. Returns what is to be done now.
    pub(super) fn ended(&mut self, number: u64, durable: bool) -> Vec<T> {
        self.on_its_way = false;
        if !durable {
            return vec![];
        }
        self.durable = number;
        let (due, later) = std::mem::take(&mut self.then).into_iter().partition(|(of, _)| *of <= number);
        self.then = later;
        let due: Vec<(u64, T)> = due;
        due.into_iter().map(|(_, then)| then).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_version_is_done_once_that_or_a_later_one_is_durable() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.behind("nothing to wait for"), Some("nothing to wait for"));
        recorder.changed("first");
        assert_eq!(recorder.begin(), Some(1));
        recorder.changed("second");
        assert_eq!(recorder.behind("behind the second"), None);
        assert_eq!(recorder.begin(), None, "one at a time");

        assert!(recorder.ended(1, false).is_empty());
        assert_eq!(recorder.begin(), Some(2), "the newest is written, whatever was tried before");
        assert_eq!(recorder.ended(2, true), ["first", "second", "behind the second"]);
        assert_eq!(recorder.begin(), None);
    }
}
