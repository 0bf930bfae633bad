//! Plans the requests that read many pieces of files. Pure.

use std::ops::Range;

use crate::model::PhysicalFileId;

/// The limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Bytes nobody wants between two pieces that are still read by one request.
    pub gap_bytes_max: u64,
    /// Unwanted bytes that a request may fetch per wanted byte; one gap it may have in any case.
    pub waste_max: u64,
    /// Bytes of one request, unless one piece alone has more.
    pub span_bytes_max: u64,
}

/// Bytes of a file that are wanted, and under which number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteSpan {
    /// Its number in the order in which pieces are wanted.
    pub piece: usize,
    /// The file.
    pub file: PhysicalFileId,
    /// The bytes of it. Never empty.
    pub range: Range<u64>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// The file.
    pub file: PhysicalFileId,
    /// The bytes of it.
    pub range: Range<u64>,
    /// Numbers of the pieces in it.
    pub pieces: Vec<usize>,
}

/// Requests that bring every place whole, the one with the piece that is wanted first before the others.
///
/// Places of one file that are near each other share a request. They may overlap.
pub fn plan(mut places: Vec<ByteSpan>, limits: ReadLimits) -> Vec<RangeRequest> {
    places.sort_by(|a, b| (&a.file, a.range.start, a.range.end).cmp(&(&b.file, b.range.start, b.range.end)));
    let mut requests: Vec<RangeRequest> = vec![];
    let mut wanted = 0;
    for place in places {
        let new = place.range.end - place.range.start;
        match requests.last_mut() {
            Some(last) if last.file == place.file && joins(last, wanted, &place.range, limits) => {
                wanted += place.range.end.saturating_sub(last.range.end.max(place.range.start));
                last.range.end = last.range.end.max(place.range.end);
                last.pieces.push(place.piece);
            }
            _ => {
                wanted = new;
                requests.push(RangeRequest { file: place.file, range: place.range, pieces: vec![place.piece] });
            }
        }
    }
    requests.sort_by_key(|request| request.pieces.iter().copied().min());
    requests
}

/// Whether a request that has `wanted` bytes somebody wants should read `range`, too, which begins no earlier.
fn joins(request: &RangeRequest, wanted: u64, range: &Range<u64>, limits: ReadLimits) -> bool {
    let end = request.range.end.max(range.end);
    let span = end - request.range.start;
    let wanted = wanted + range.end.saturating_sub(request.range.end.max(range.start));
    let gap = range.start.saturating_sub(request.range.end);
    gap <= limits.gap_bytes_max
        && span <= limits.span_bytes_max
        && span - wanted <= (wanted * limits.waste_max).max(limits.gap_bytes_max)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn file(number: u64) -> PhysicalFileId {
        PhysicalFileId::new(None, 1, number.into())
    }

    fn place(piece: usize, of: u64, range: Range<u64>) -> ByteSpan {
        ByteSpan { piece, file: file(of), range }
    }

    const LIMITS: ReadLimits = ReadLimits { gap_bytes_max: 10, waste_max: 1, span_bytes_max: 100 };

    #[test]
    fn neighbours_share_a_request_and_the_one_wanted_first_comes_first() {
        let places = vec![place(0, 2, 50..60), place(1, 1, 20..30), place(2, 2, 40..45), place(3, 1, 0..20)];

        let requests = plan(places, LIMITS);

        let second = RangeRequest { file: file(2), range: 40..60, pieces: vec![2, 0] };
        assert_eq!(requests, [second, RangeRequest { file: file(1), range: 0..30, pieces: vec![3, 1] }]);
    }

    #[test]
    fn a_gap_or_a_span_beyond_the_limits_needs_another_request() {
        assert_eq!(plan(vec![place(0, 1, 0..5), place(1, 1, 16..20)], LIMITS).len(), 2);
        assert_eq!(plan(vec![place(0, 1, 0..60), place(1, 1, 60..101)], LIMITS).len(), 2);
        assert_eq!(plan(vec![place(0, 1, 0..1), place(1, 1, 9..10), place(2, 1, 18..19)], LIMITS).len(), 2);
        assert_eq!(plan(vec![place(0, 1, 0..500)], LIMITS).len(), 1);
    }

    fn any_places() -> impl Strategy<Value = Vec<ByteSpan>> {
        vec((0_u64..4, 0_u64..400, 1_u64..40), 0..60).prop_map(|all| {
            let all = all.into_iter().enumerate();
            all.map(|(piece, (of, start, len))| place(piece, of, start..start + len)).collect()
        })
    }

    proptest! {
        #[test]
        fn every_byte_of_every_place_is_in_the_one_request_that_names_it(places in any_places()) {
            let requests = plan(places.clone(), LIMITS);

            let mut named: Vec<usize> = requests.iter().flat_map(|request| request.pieces.clone()).collect();
            named.sort_unstable();
            prop_assert_eq!(named, (0..places.len()).collect::<Vec<_>>());
            for request in &requests {
                let first = request.pieces.iter().map(|piece| places[*piece].range.start).min();
                let last = request.pieces.iter().map(|piece| places[*piece].range.end).max();
                prop_assert_eq!((first, last), (Some(request.range.start), Some(request.range.end)));
                for piece in &request.pieces {
                    prop_assert_eq!(&places[*piece].file, &request.file);
                }
            }
        }

        #[test]
        fn spans_gaps_and_waste_stay_within_the_limits(places in any_places()) {
            for request in plan(places.clone(), LIMITS) {
                let inside: Vec<&Range<u64>> = request.pieces.iter().map(|piece| &places[*piece].range).collect();
                let wanted: BTreeSet<u64> = inside.iter().flat_map(|range| (*range).clone()).collect();
                let span = request.range.end - request.range.start;
                let waste = span - wanted.len() as u64;
                let ordered: Vec<u64> = wanted.iter().copied().collect();

                prop_assert!(span <= LIMITS.span_bytes_max);
                prop_assert!(waste <= (wanted.len() as u64 * LIMITS.waste_max).max(LIMITS.gap_bytes_max));
                prop_assert!(ordered.windows(2).all(|pair| pair[1] - pair[0] <= LIMITS.gap_bytes_max + 1));
            }
        }

        #[test]
        fn requests_stand_in_the_order_of_the_pieces_wanted_first(places in any_places()) {
            let firsts: Vec<_> =
                plan(places, LIMITS).iter().map(|request| request.pieces.iter().copied().min()).collect();

            prop_assert!(firsts.is_sorted());
        }
    }
}
