//! Changes to the catalog's database as the state leaves them behind and the journal writes them: keys and values, of which
//! the records say what they mean.

use bytes::Bytes;

/// One change to the catalog's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Sets a record.
    Put {
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// Removes a record; nothing happens where there is none.
    Delete {
        /// Its key.
        key: Bytes,
    },
}

impl Mutation {
    /// Bytes of the key and the value.
    pub fn weight(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}
