//! A serialized Java object, of which nothing is wanted but where it ends: a file that is torn within it is torn.
//!
//! # Source
//! Java Object Serialization Specification, "6 Object Serialization Stream Protocol".

use super::cursor::{Cursor, MetadataDamage, MetadataError};

const MAGIC_AND_VERSION: i32 = 0xaced_0005_u32.cast_signed();
/// Objects inside of each other: the properties of a checkpoint have three.
const DEPTH_MAX: usize = 16;
const FIRST_HANDLE: i32 = 0x7e_0000;

const NULL: u8 = 0x70;
const REFERENCE: u8 = 0x71;
const CLASS: u8 = 0x72;
const OBJECT: u8 = 0x73;
const STRING: u8 = 0x74;
const BLOCK: u8 = 0x77;
const END: u8 = 0x78;
const ENUM: u8 = 0x7e;

/// Classes whose objects say more than their fields; that write themselves in a way of their own.
const WRITES_MORE: u8 = 1;
const WRITES_ITSELF: u8 = 4;

/// Goes over one object.
///
/// # Errors
/// [`MetadataError::MetadataDamage`].
pub fn walk_object(cursor: &mut Cursor<'_>) -> Result<(), MetadataError> {
    let begin = cursor.i32()?;
    if begin != MAGIC_AND_VERSION {
        return cursor.damaged(4, MetadataDamage::Unknown(begin.into()));
    }
    ObjectWalk { cursor, classes: vec![], handles: vec![] }.content(0).map(|_| ())
}

/// The fields of a class, by the letters of their types.
#[derive(Debug)]
struct Class {
    fields: Vec<u8>,
    flags: u8,
    parent: Option<usize>,
}

struct ObjectWalk<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    classes: Vec<Class>,
    /// What can be referred to, by its number: a class that is known to its end, or something else.
    handles: Vec<Option<usize>>,
}

impl ObjectWalk<'_, '_> {
    /// Anything; whether it was the end of a list.
    fn content(&mut self, depth: usize) -> Result<bool, MetadataError> {
        let kind = self.cursor.u8()?;
        if depth >= DEPTH_MAX {
            return self.cursor.damaged(1, MetadataDamage::Depth);
        }
        match kind {
            NULL => (),
            REFERENCE => {
                self.cursor.i32()?;
            }
            STRING => {
                self.handles.push(None);
                self.cursor.text()?;
            }
            CLASS => {
                self.class_body(depth)?;
            }
            OBJECT => {
                let class = self.class(depth)?;
                self.handles.push(None);
                self.fields(class, depth)?;
            }
            ENUM => {
                self.class(depth)?;
                self.handles.push(None);
                self.content(depth + 1)?;
            }
            BLOCK => {
                let len = self.cursor.u8()?;
                self.cursor.take(usize::from(len))?;
            }
            END => return Ok(true),
            _ => return self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
        Ok(false)
    }

    /// A class: described here, or before.
    fn class(&mut self, depth: usize) -> Result<Option<usize>, MetadataError> {
        match self.cursor.u8()? {
            NULL => Ok(None),
            CLASS => self.class_body(depth).map(Some),
            REFERENCE => {
                let handle = self.cursor.i32()?;
                let place = handle.checked_sub(FIRST_HANDLE).and_then(|place| usize::try_from(place).ok());
                match place.and_then(|place| self.handles.get(place)).copied().flatten() {
                    Some(class) => Ok(Some(class)),
                    None => self.cursor.damaged(4, MetadataDamage::Unknown(handle.into())),
                }
            }
            kind => self.cursor.damaged(1, MetadataDamage::Unknown(kind.into())),
        }
    }

    fn class_body(&mut self, depth: usize) -> Result<usize, MetadataError> {
        if depth >= DEPTH_MAX {
            return self.cursor.damaged(1, MetadataDamage::Depth);
        }
        self.cursor.text()?;
        self.cursor.i64()?;
        let handle = self.handles.len();
        // Not known to its end: a class that is its own parent would have no end.
        self.handles.push(None);
        let flags = self.cursor.u8()?;
        if flags & WRITES_ITSELF != 0 {
            return self.cursor.damaged(1, MetadataDamage::Unknown(flags.into()));
        }
        let mut fields = vec![];
        for _ in 0..self.cursor.u16()? {
            let of = self.cursor.u8()?;
            self.cursor.text()?;
            if matches!(of, b'L' | b'[') {
                self.content(depth + 1)?;
            }
            fields.push(of);
        }
        while !self.content(depth + 1)? {}
        let parent = self.class(depth + 1)?;
        self.classes.push(Class { fields, flags, parent });
        let class = self.classes.len() - 1;
        self.handles[handle] = Some(class);
        Ok(class)
    }

    /// The fields of an object, those of its first ancestor first.
    fn fields(&mut self, class: Option<usize>, depth: usize) -> Result<(), MetadataError> {
        let mut line = vec![];
        let mut next = class;
        while let Some(class) = next {
            if line.len() >= DEPTH_MAX {
                return self.cursor.damaged(0, MetadataDamage::Depth);
            }
            line.push(class);
            next = self.classes[class].parent;
        }
        for class in line.into_iter().rev() {
            for field in 0..self.classes[class].fields.len() {
                self.field(self.classes[class].fields[field], depth)?;
            }
            if self.classes[class].flags & WRITES_MORE != 0 {
                while !self.content(depth + 1)? {}
            }
        }
        Ok(())
    }

    fn field(&mut self, of: u8, depth: usize) -> Result<(), MetadataError> {
        let len = match of {
            b'B' | b'Z' => 1,
            b'C' | b'S' => 2,
            b'F' | b'I' => 4,
            b'D' | b'J' => 8,
            b'L' => return self.content(depth + 1).map(|_| ()),
            _ => return self.cursor.damaged(0, MetadataDamage::Unknown(of.into())),
        };
        self.cursor.take(len).map(|_| ())
    }
}
