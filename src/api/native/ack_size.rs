//! Looks at the text of an acknowledgement before it is taken apart: what is small as text may be large in memory.

use std::fmt;
use std::marker::PhantomData;

use esker_client::wire::AckRequest;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::parts::object;
use crate::api::status::ApiError;

/// Offsets of all states of one acknowledgement.
const OFFSETS_MAX: usize = 1 << 20;
/// A shorter text is small in memory, too.
const LOOKED_AT_BYTES_MIN: usize = 64 << 10;

/// Reads an acknowledgement of at most `states_max` states.
pub(super) fn ack_of(text: &[u8], states_max: usize) -> Result<AckRequest, ApiError> {
    if text.len() > LOOKED_AT_BYTES_MIN {
        let AckShape { state } = object("body", text)?;
        check(state.items, state.within, states_max)?;
    }
    let ack: AckRequest = object("body", text)?;
    let offsets = ack.state.iter().filter_map(|state| state.offsets.as_ref()).map(Vec::len).sum();
    check(ack.state.len(), offsets, states_max)?;
    Ok(ack)
}

fn check(states: usize, offsets: usize, states_max: usize) -> Result<(), ApiError> {
    if states > states_max {
        let message = format!("{states} states, limits.segments-per-request-max is {states_max}");
        return Err(ApiError::invalid("state", message));
    }
    if offsets > OFFSETS_MAX {
        let message = format!("{offsets} offsets, and all states of one acknowledgement have at most {OFFSETS_MAX}");
        return Err(ApiError::invalid("state", message));
    }
    Ok(())
}

/// How large an acknowledgement is. It has more fields; whoever reads them says what is wrong with them.
#[derive(Deserialize)]
struct AckShape {
    #[serde(default)]
    state: Items<StateShape>,
}

#[derive(Deserialize)]
struct StateShape {
    #[serde(default)]
    offsets: Option<Items<IgnoredAny>>,
}

/// A list of which only its length is kept, and the number of items within its items.
struct Items<T> {
    items: usize,
    within: usize,
    of: PhantomData<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { items: 0, within: 0, of: PhantomData }
    }
}

trait Within {
    fn within(&self) -> usize;
}

impl Within for IgnoredAny {
    fn within(&self) -> usize {
        0
    }
}

impl Within for StateShape {
    fn within(&self) -> usize {
        self.offsets.as_ref().map_or(0, |offsets| offsets.items)
    }
}

impl<'de, T: Deserialize<'de> + Within> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemCounter<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Within> Visitor<'de> for ItemCounter<T> {
            type Value = Items<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<T>, A::Error> {
                let mut all = Items::default();
                while let Some(item) = seq.next_element::<T>()? {
                    all.items += 1;
                    all.within += item.within();
                }
                Ok(all)
            }
        }

        deserializer.deserialize_seq(ItemCounter(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, states_max: usize, words: &str) {
        let error = ack_of(text.as_bytes(), states_max).unwrap_err();
        assert!(error.field == Some("state") && error.message.contains(words), "{error:?}");
    }

    fn ack(state: &str) -> String {
        format!(r#"{{"operator":"a","subtask":0,"attempt":1,"state":[{state}]}}"#)
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_is_taken_apart() {
        let many = format!("{}{{}}", "{},".repeat(40_000));
        assert_eq!(ack_of(ack(&many).as_bytes(), 40_001).unwrap().state.len(), 40_001);
        refused(&ack(&many), 10_000, "40001 states");
        refused(&ack("{},{}"), 1, "2 states");
        let zeros = format!(r#"{{"part":0,"offsets":[{}0]}}"#, "0,".repeat(OFFSETS_MAX / 2 - 1));
        assert!(ack_of(ack(&format!("{zeros},{zeros}")).as_bytes(), 9).is_ok());
        refused(&ack(&format!("{zeros},{zeros},{{\"offsets\":[7]}}")), 9, "1048577 offsets");
        // States may come as lists, too: nothing gets past the look.
        let listed = format!("[null,null,null,null,[{}0]]", "0,".repeat(OFFSETS_MAX));
        assert!(ack_of(ack(&listed).as_bytes(), 9).is_err());
    }
}
