//! The number of deletes that come together. A pure value.
//!
//! A client that deletes from a number of threads has so many on their way at once, again and again: a wave is that many,
//! the last one of a burst is fewer, and what a burst ends with may come alone. So the number is that of the largest group
//! of late, and one smaller group, for which the rest was waited for in vain, does not change that: the next burst would
//! have to find its step anew, wave by wave. Several such groups in a row do.

/// Groups in a row that may wait in vain before as many are expected no longer.
const IN_VAIN_MAX: u32 = 3;

/// The deletes that a group waits for.
#[derive(Debug, Default)]
pub(super) struct UsualDeletes {
    expected: usize,
    /// Groups in a row that waited in vain, and the deletes of the largest.
    in_vain: u32,
    largest_in_vain: usize,
}

impl UsualDeletes {
    /// So many come together, as far as is known.
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// A group goes, with so many deletes. `in_vain`: it has waited for more as long as it may. One that goes earlier, because
    /// something else has to, tells nothing if it is small.
    pub(super) fn group(&mut self, deletes: usize, in_vain: bool) {
        if deletes >= self.expected {
            *self = Self { expected: deletes, ..Self::default() };
        } else if in_vain {
            self.in_vain += 1;
            self.largest_in_vain = self.largest_in_vain.max(deletes);
            if self.in_vain == IN_VAIN_MAX {
                *self = Self { expected: self.largest_in_vain, ..Self::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(groups: &[(usize, bool)]) -> UsualDeletes {
        let mut usual = UsualDeletes::default();
        groups.iter().for_each(|(deletes, in_vain)| usual.group(*deletes, *in_vain));
        usual
    }

    #[test]
    fn a_burst_expects_what_the_waves_of_the_last_one_had() {
        // The last wave of a burst, and what comes when all of it is done.
        let burst = [(8, false), (8, false), (3, true), (1, true)];

        assert_eq!(after(&burst).expected(), 8);
        assert_eq!(after(&burst.repeat(10)).expected(), 8);
    }

    #[test]
    fn who_deletes_alone_behind_a_burst_waits_a_few_times_and_then_no_more() {
        let mut usual = after(&[(8, false), (1, true), (1, true)]);
        assert_eq!(usual.expected(), 8);

        usual.group(1, true);

        assert_eq!(usual.expected(), 1);
    }

    #[test]
    fn fewer_threads_than_before_become_what_is_usual() {
        assert_eq!(after(&[(16, false), (8, true), (7, true), (8, true)]).expected(), 8);
    }

    #[test]
    fn a_group_that_had_to_go_early_tells_nothing_unless_it_is_the_largest() {
        assert_eq!(after(&[(8, false), (2, false), (2, false), (2, false), (2, false)]).expected(), 8);
        assert_eq!(after(&[(2, false), (8, false)]).expected(), 8);
    }
}
