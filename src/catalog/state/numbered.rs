//! Things with a name and a short number: what a segment says by the number, it says once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;

use super::pages::Pages;

/// Entries of a page of the table.
const PAGE: usize = 256;

/// Values by name, and by a number that stays the same as long as the value is there.
#[derive(Debug)]
pub(super) struct Numbered<K, V> {
    /// Hashes of names, with their numbers: a search reads no other name than the one it finds.
    numbers: Pages<(u64, u32), ()>,
    /// In pages, so that it never moves as a whole.
    entries: Vec<Vec<Option<(K, V)>>>,
    free: Vec<u32>,
}

impl<K, V> Default for Numbered<K, V> {
    fn default() -> Self {
        Self { numbers: Pages::new(), entries: vec![], free: vec![] }
    }
}

/// The hash of a name, or of whatever else is looked up by one.
pub(super) fn hash_of<T: Hash + ?Sized>(name: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

impl<K: Hash + Ord + Clone, V> Numbered<K, V> {
    /// The number of a name.
    pub(super) fn number(&self, name: &K) -> Option<u32> {
        self.number_by_hash(hash_of(name), name)
    }

    fn number_by_hash(&self, hash: u64, name: &K) -> Option<u32> {
        let alike = self.numbers.iter_from(Bound::Included(&(hash, 0))).take_while(|((other, _), ())| *other == hash);
        let mut alike = alike.map(|((_, number), ())| *number);
        alike.find(|number| self.at(*number).is_some_and(|(other, _)| other == name))
    }

    pub(super) fn contains(&self, name: &K) -> bool {
        self.number(name).is_some()
    }

    /// Name and value of a number.
    pub(super) fn at(&self, number: u32) -> Option<(&K, &V)> {
        let (page, place) = place(number);
        self.entries.get(page)?.get(place)?.as_ref().map(|(name, value)| (name, value))
    }

    pub(super) fn at_mut(&mut self, number: u32) -> Option<(&K, &mut V)> {
        let (page, place) = place(number);
        self.entries.get_mut(page)?.get_mut(place)?.as_mut().map(|(name, value)| (&*name, value))
    }

    pub(super) fn get(&self, name: &K) -> Option<&V> {
        self.at(self.number(name)?).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, name: &K) -> Option<&mut V> {
        self.at_mut(self.number(name)?).map(|(_, value)| value)
    }

    /// The number and value of a name; made by `make` if there is none.
    pub(super) fn entry(&mut self, name: &K, make: impl FnOnce() -> V) -> (u32, &mut V) {
        let hash = hash_of(name);
        let number = match self.number_by_hash(hash, name) {
            Some(number) => number,
            None => self.add(hash, name.clone(), make()),
        };
        let (_, value) = self.at_mut(number).expect("a name has a number only while there is an entry");
        (number, value)
    }

    fn add(&mut self, hash: u64, name: K, value: V) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            let last = self.entries.len().saturating_sub(1);
            let used = last * PAGE + self.entries.last().map_or(0, Vec::len);
            u32::try_from(used).expect("four billion entries take more memory than there is")
        });
        self.numbers.insert((hash, number), ());
        let (page, place) = place(number);
        if page == self.entries.len() {
            self.entries.push(vec![]);
        }
        let page = &mut self.entries[page];
        if place == page.len() {
            page.push(Some((name, value)))
        } else {
            page[place] = Some((name, value))
        }
        number
    }

    pub(super) fn remove(&mut self, name: &K) -> Option<V> {
        let hash = hash_of(name);
        let number = self.number_by_hash(hash, name)?;
        self.numbers.remove(&(hash, number));
        self.free.push(number);
        let (page, place) = place(number);
        self.entries[page][place].take().map(|(_, value)| value)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// All in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().flatten().flatten().map(|(name, value)| (name, value))
    }

    /// All in the order of their names.
    pub(super) fn sorted(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut all: Vec<(&K, &V)> = self.iter().collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter()
    }

    /// All values in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Tells all from the number `next` on, in the order of their numbers, while `goes_on`. True at the end; otherwise `next` is
    /// where it goes on.
    pub(super) fn each(
        &self,
        next: &mut u32,
        goes_on: &mut dyn FnMut() -> bool,
        mut tell: impl FnMut(u32, &K, &V),
    ) -> bool {
        while let Some(entry) = self.slot(*next) {
            if let Some((name, value)) = entry {
                tell(*next, name, value);
            }
            *next += 1;
            if !goes_on() {
                return false;
            }
        }
        true
    }

    /// The same, to be changed.
    pub(super) fn each_mut(
        &mut self,
        next: &mut u32,
        goes_on: &mut dyn FnMut() -> bool,
        mut change: impl FnMut(&K, &mut V),
    ) -> bool {
        while self.slot(*next).is_some() {
            if let Some((name, value)) = self.at_mut(*next) {
                change(name, value);
            }
            *next += 1;
            if !goes_on() {
                return false;
            }
        }
        true
    }

    fn slot(&self, number: u32) -> Option<&Option<(K, V)>> {
        let (page, place) = place(number);
        self.entries.get(page)?.get(place)
    }
}

fn place(number: u32) -> (usize, usize) {
    (number as usize / PAGE, number as usize % PAGE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_means_one_name_until_it_is_removed(ops in vec((0_u16..2000, any::<bool>()), 1..1500)) {
            let (mut numbered, mut model) = (Numbered::default(), BTreeMap::new());
            for (name, put) in ops {
                if put {
                    let (number, value) = numbered.entry(&name, || u32::from(name) * 2);
                    prop_assert_eq!(*value, u32::from(name) * 2);
                    prop_assert_eq!(*model.entry(name).or_insert(number), number);
                } else {
                    let removed = numbered.remove(&name);
                    prop_assert_eq!(removed.is_some(), model.remove(&name).is_some());
                }
            }
            for (name, number) in &model {
                prop_assert_eq!(numbered.at(*number), Some((name, &(u32::from(*name) * 2))));
                prop_assert_eq!(numbered.number(name), Some(*number));
            }
            prop_assert!(numbered.sorted().map(|(name, _)| name).eq(model.keys()));
            prop_assert_eq!(numbered.values().count(), model.len());
        }
    }
}
