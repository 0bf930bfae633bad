//! The CRC of bytes that were put together, from the CRCs of the pieces.
//!
//! A CRC is the remainder of the bytes, taken for a polynomial over GF(2), by the generator. To append `n` bytes multiplies
//! what is before by `x^8n`: one multiplication for each bit of `n`, and one for each piece. That is some microseconds for each
//! of the 10,000 parts that an upload may have, where the matrices of `crc_fast` take a quarter of a millisecond.
//!
//! # Source
//! Mark Adler, `crc32_combine` of zlib 1.2.12; the generators are those of the catalogue of parametrised CRC algorithms.

/// A CRC whose values are reflected, begin with ones and end with ones, as the three that S3 combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Combination {
    width: u32,
    /// Reflected, without its highest power: bit 0 is that of `x^(width - 1)`.
    generator: u64,
}

impl Combination {
    pub(super) const CRC32: Self = Self { width: 32, generator: 0xedb8_8320 };
    pub(super) const CRC32C: Self = Self { width: 32, generator: 0x82f6_3b78 };
    pub(super) const CRC64NVME: Self = Self { width: 64, generator: 0x9a6c_9329_ac4b_c9b5 };

    /// The CRC of no bytes.
    pub(super) const EMPTY: u64 = 0;

    /// The CRC of what has the CRC `before`, and behind it `len` bytes that have the CRC `behind`.
    pub(super) fn append(self, before: u64, behind: u64, len: u64) -> u64 {
        self.times(self.power_of_bytes(len), before) ^ behind
    }

    /// The polynomial 1.
    fn one(self) -> u64 {
        1 << (self.width - 1)
    }

    /// The product of two polynomials, reduced.
    fn times(self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        for power in (0..self.width).rev() {
            if (a >> power) & 1 == 1 {
                product ^= b;
            }
            b = self.times_x(b);
        }
        product
    }

    fn times_x(self, a: u64) -> u64 {
        if a & 1 == 1 { (a >> 1) ^ self.generator } else { a >> 1 }
    }

    /// `x^(8 len)`, reduced.
    fn power_of_bytes(self, len: u64) -> u64 {
        let (mut power, mut square, mut rest) = (self.one(), self.one() >> 8, len);
        while rest > 0 {
            if rest & 1 == 1 {
                power = self.times(square, power);
            }
            square = self.times(square, square);
            rest >>= 1;
        }
        power
    }
}

#[cfg(test)]
mod tests {
    use crc_fast::CrcAlgorithm;
    use proptest::prelude::*;

    use super::*;

    const ALL: [(Combination, CrcAlgorithm); 3] = [
        (Combination::CRC32, CrcAlgorithm::Crc32IsoHdlc),
        (Combination::CRC32C, CrcAlgorithm::Crc32Iscsi),
        (Combination::CRC64NVME, CrcAlgorithm::Crc64Nvme),
    ];

    proptest! {
        #[test]
        fn pieces_have_the_crc_of_the_whole(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6)) {
            for (combination, crc) in ALL {
                let mut combined = Combination::EMPTY;
                for piece in &pieces {
                    combined = combination.append(combined, crc_fast::checksum(crc, piece), piece.len() as u64);
                }

                prop_assert_eq!(combined, crc_fast::checksum(crc, &pieces.concat()));
            }
        }

        #[test]
        fn pieces_of_any_length_are_combined_as_another_library_does(before: u64, behind: u64, len in 0..u64::MAX / 8) {
            for (combination, crc) in ALL {
                let mask = u64::MAX >> (64 - combination.width);
                let (before, behind) = (before & mask, behind & mask);

                let expected = crc_fast::checksum_combine(crc, before, behind, len);

                prop_assert_eq!(combination.append(before, behind, len), expected);
            }
        }
    }
}
