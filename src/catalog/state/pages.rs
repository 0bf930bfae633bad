//! A sorted map in pages: what a catalog keeps by the million.
//!
//! A page is one allocation of up to [`PAGE`] entries, and pages are full where keys come in order, as the identities of
//! segments do, or almost in order. So an entry takes its own bytes and a fraction, where a B-tree that is filled in order
//! takes twice as much and a hash table up to twice, and copies itself when it grows. A map of one entry takes one entry.

use std::borrow::Borrow;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

/// Entries of a page at most.
const PAGE: usize = 128;
/// A page with fewer looks for a neighbour to share a page with.
const FEW: usize = PAGE / 4;
/// Both together have at most so many then, so that the next entry does not split them again.
const SHARED_MAX: usize = PAGE * 3 / 4;

type Page<K, V> = Vec<(K, V)>;

/// A sorted map. See the module's docs.
#[derive(Debug)]
pub(super) enum Pages<K, V> {
    /// All entries fit into one page.
    One(Page<K, V>),
    /// Several pages.
    Many(Box<Tree<K, V>>),
}

/// Pages by a key that is not greater than any of theirs, and greater than all of the page before.
#[derive(Debug)]
pub(super) struct Tree<K, V> {
    pages: BTreeMap<K, Page<K, V>>,
    len: usize,
}

impl<K, V> Default for Pages<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> Pages<K, V> {
    /// An empty map, which takes no memory.
    pub(super) const fn new() -> Self {
        Self::One(Vec::new())
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(page) => page.len(),
            Self::Many(tree) => tree.len,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Ord + Clone, V> Pages<K, V> {
    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let page = match self {
            Self::One(page) => page,
            Self::Many(tree) => tree.pages.range::<Q, _>((Bound::Unbounded, Bound::Included(key))).next_back()?.1,
        };
        let at = find(page, key).ok()?;
        Some(&page[at].1)
    }

    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let page = match self {
            Self::One(page) => page,
            Self::Many(tree) => tree.pages.range_mut::<Q, _>((Bound::Unbounded, Bound::Included(key))).next_back()?.1,
        };
        let at = find(page, key).ok()?;
        Some(&mut page[at].1)
    }

    pub(super) fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets the value under a key. Returns the one before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Self::One(page) => match find(page, &key) {
                Ok(at) => Some(std::mem::replace(&mut page[at].1, value)),
                Err(at) if page.len() < PAGE => {
                    put(page, at, (key, value));
                    None
                }
                Err(_) => {
                    let page = std::mem::take(page);
                    let len = page.len();
                    let pages = BTreeMap::from([(page[0].0.clone(), page)]);
                    let mut tree = Box::new(Tree { pages, len });
                    let before = tree.insert(key, value);
                    *self = Self::Many(tree);
                    before
                }
            },
            Self::Many(tree) => tree.insert(key, value),
        }
    }

    /// Takes an entry out.
    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::One(page) => {
                let at = find(page, key).ok()?;
                let (_, value) = page.remove(at);
                fit(page);
                Some(value)
            }
            Self::Many(tree) => {
                let removed = tree.remove(key)?;
                if tree.pages.len() == 1
                    && let Some((_, page)) = tree.pages.pop_first()
                {
                    *self = Self::One(page);
                }
                Some(removed)
            }
        }
    }

    /// The entry with the smallest key.
    pub(super) fn first(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// All entries in the order of their keys.
    pub(super) fn iter(&self) -> Iter<'_, K, V> {
        match self {
            Self::One(page) => Iter { page: page.iter(), rest: btree_map::Range::default() },
            Self::Many(tree) => Iter { page: [].iter(), rest: tree.pages.range::<K, _>(..) },
        }
    }

    /// The keys in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Entries from a key on.
    pub(super) fn iter_from<Q: Ord + ?Sized>(&self, from: Bound<&Q>) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let (key, inclusive) = match from {
            Bound::Unbounded => return self.iter(),
            Bound::Included(key) => (key, true),
            Bound::Excluded(key) => (key, false),
        };
        let begin = |page: &Page<K, V>| {
            page.partition_point(|(other, _)| other.borrow() < key || !inclusive && other.borrow() == key)
        };
        match self {
            Self::One(page) => Iter { page: page[begin(page)..].iter(), rest: btree_map::Range::default() },
            Self::Many(tree) => {
                let first = tree.pages.range::<Q, _>((Bound::Unbounded, Bound::Included(key))).next_back();
                let page = first.map_or([].iter(), |(_, page)| page[begin(page)..].iter());
                Iter { page, rest: tree.pages.range::<Q, _>((Bound::Excluded(key), Bound::Unbounded)) }
            }
        }
    }
}

impl<K: Ord + Clone, V> Tree<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let mut at_or_before = self.pages.range_mut(..=&key);
        let Some((_, page)) = at_or_before.next_back() else {
            // Smaller than all: it leads the first page.
            let (_, mut page) = self.pages.pop_first()?;
            let rest = if page.len() == PAGE { page.split_off(PAGE / 2) } else { vec![] };
            self.add_page(rest);
            put(&mut page, 0, (key, value));
            self.add_page(page);
            self.len += 1;
            return None;
        };
        let at = match find(page, &key) {
            Ok(at) => return Some(std::mem::replace(&mut page[at].1, value)),
            Err(at) => at,
        };
        self.len += 1;
        if page.len() < PAGE {
            put(page, at, (key, value));
            return None;
        }
        // Near the end only the end moves: into the next page, or at the end of all into a new one. So pages stay full when
        // keys come almost in order.
        let late = at >= PAGE - FEW;
        let mut moved = page.split_off(if late { at } else { PAGE / 2 });
        if late {
            moved.insert(0, (key.clone(), value));
            let room = |page: &Page<K, V>| page.len() + moved.len() <= PAGE;
            let next = self.pages.range((Bound::Excluded(&key), Bound::Unbounded)).next();
            if let Some(next) = next.filter(|(_, page)| room(page)).map(|(key, _)| key.clone())
                && let Some(page) = self.pages.remove(&next)
            {
                moved.extend(page);
            }
        } else if at <= PAGE / 2 {
            put(page, at, (key, value));
        } else {
            put(&mut moved, at - PAGE / 2, (key, value));
        }
        self.add_page(moved);
        None
    }

    fn add_page(&mut self, page: Page<K, V>) {
        if let Some((first, _)) = page.first() {
            self.pages.insert(first.clone(), page);
        }
    }

    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (_, page) = self.pages.range_mut::<Q, _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let at = find(page, key).ok()?;
        let (removed, value) = page.remove(at);
        self.len -= 1;
        if page.len() < FEW {
            self.join(&removed);
        }
        Some(value)
    }

    /// Joins the page in which `key` is, or was, with the one behind or before it, if they fit into one.
    fn join(&mut self, key: &K) {
        let Some(of) = self.pages.range(..=key).next_back().map(|(of, _)| of.clone()) else { return };
        let Some(mut page) = self.pages.remove(&of) else { return };
        if page.is_empty() {
            return;
        }
        let fits = |other: &Page<K, V>| other.len() + page.len() <= SHARED_MAX;
        let next = self.pages.range((Bound::Excluded(&of), Bound::Unbounded)).next();
        let next = next.filter(|(_, next)| fits(next)).map(|(key, _)| key.clone());
        if let Some(next) = next.and_then(|next| self.pages.remove(&next)) {
            page.extend(next);
        } else if let Some((_, before)) = self.pages.range_mut(..&of).next_back()
            && before.len() + page.len() <= SHARED_MAX
        {
            before.extend(page);
            return;
        }
        fit(&mut page);
        self.pages.insert(of, page);
    }
}

fn find<K: Borrow<Q>, V, Q: Ord + ?Sized>(page: &Page<K, V>, key: &Q) -> Result<usize, usize> {
    // Most come in order.
    match page.last() {
        Some((last, _)) if last.borrow() < key => Err(page.len()),
        _ => page.binary_search_by(|(other, _)| other.borrow().cmp(key)),
    }
}

/// Grows a page by half at most, so that a short one takes little more than it needs.
fn put<K, V>(page: &mut Page<K, V>, at: usize, entry: (K, V)) {
    if page.len() == page.capacity() {
        page.reserve_exact((page.len() / 2).clamp(1, PAGE.saturating_sub(page.len()).max(1)));
    }
    page.insert(at, entry);
}

/// Gives memory back that a page has no use for any more.
fn fit<K, V>(page: &mut Page<K, V>) {
    if page.len() <= page.capacity() / 4 {
        page.shrink_to(page.len() + page.len() / 2);
    }
}

/// Entries in the order of their keys.
#[derive(Debug)]
pub(super) struct Iter<'a, K, V> {
    page: std::slice::Iter<'a, (K, V)>,
    rest: btree_map::Range<'a, K, Page<K, V>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                return Some((key, value));
            }
            self.page = self.rest.next()?.1.iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u32),
        Remove(u32),
        /// Many in ascending order, but for a few.
        Append(u32),
        /// All between two keys.
        RemoveRange(u32, u32),
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0_u32..4000).prop_map(Op::Insert),
            6 => (0_u32..4000).prop_map(Op::Remove),
            2 => (1_u32..400).prop_map(Op::Append),
            1 => (0_u32..4000, 0_u32..600).prop_map(|(from, len)| Op::RemoveRange(from, from + len)),
        ]
    }

    fn holds(pages: &Pages<u32, u64>) {
        let Pages::Many(tree) = pages else { return };
        assert!(tree.pages.len() > 1);
        assert_eq!(tree.len, tree.pages.values().map(Vec::len).sum::<usize>());
        let bounds: Vec<&u32> = tree.pages.keys().collect();
        for (index, (bound, page)) in tree.pages.iter().enumerate() {
            assert!(!page.is_empty() && page.len() <= PAGE, "{} entries", page.len());
            assert!(page[0].0 >= *bound);
            assert!(bounds.get(index + 1).is_none_or(|next| page[page.len() - 1].0 < **next));
        }
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(ops in vec(any_op(), 1..200), probes in vec(0_u32..5000, 10)) {
            let (mut pages, mut model) = (Pages::new(), BTreeMap::new());
            for (value, op) in (0_u64..).zip(ops) {
                match op {
                    Op::Insert(key) => prop_assert_eq!(pages.insert(key, value), model.insert(key, value)),
                    Op::Remove(key) => prop_assert_eq!(pages.remove(&key), model.remove(&key)),
                    Op::Append(count) => {
                        let last = model.last_key_value().map_or(0, |(last, _)| *last);
                        for key in (last + 1..last + count).map(|key| key ^ u32::from(key % 7 == 0)) {
                            prop_assert_eq!(pages.insert(key, value), model.insert(key, value));
                        }
                    }
                    Op::RemoveRange(from, to) => {
                        for key in from..to {
                            prop_assert_eq!(pages.remove(&key), model.remove(&key));
                        }
                    }
                }
                holds(&pages);
            }
            prop_assert_eq!(pages.len(), model.len());
            prop_assert_eq!(pages.first(), model.first_key_value());
            prop_assert!(pages.iter().eq(model.iter()));
            for probe in probes {
                prop_assert_eq!(pages.get(&probe), model.get(&probe));
                for bound in [Bound::Included(&probe), Bound::Excluded(&probe)] {
                    let range = model.range((bound.cloned(), Bound::Unbounded));
                    prop_assert!(pages.iter_from(bound).eq(range));
                }
            }
        }
    }

    #[test]
    fn pages_are_full_when_keys_come_almost_in_order() {
        let mut pages = Pages::new();
        for key in 0..100_000_u32 {
            // Of two that come at the same time the later one may be first.
            pages.insert(key ^ u32::from(key % 50 == 0), ());
        }

        let Pages::Many(tree) = &pages else { panic!("many pages") };
        let places: usize = tree.pages.values().map(Vec::capacity).sum();
        assert!(places < 105_000, "{places} places for 100,000 entries");
    }

    #[test]
    fn a_map_of_one_takes_one_and_a_map_that_was_large_becomes_small() {
        let mut pages = Pages::new();
        pages.insert(0_u32, ());
        let Pages::One(page) = &pages else { panic!("one page") };
        assert_eq!(page.capacity(), 1);

        assert!((1..10_000).all(|key| pages.insert(key, ()).is_none()));
        assert!((1..10_000).all(|key| pages.remove(&key).is_some()));

        let Pages::One(page) = &pages else { panic!("one page") };
        assert!(page.len() == 1 && page.capacity() < 64, "{}", page.capacity());
    }
}
