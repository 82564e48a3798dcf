use std::fmt;

use twill_types::Asn;

use super::reader::Reader;

/// Types of segment (RFC 4271 section 4.3, RFC 5065).
const AS_SET: u8 = 1;
const AS_SEQUENCE: u8 = 2;
const AS_CONFED_SEQUENCE: u8 = 3;
const AS_CONFED_SET: u8 = 4;

/// A part of an AS path. Its numbers include 23456 and private ones, never 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// The ASes in the order in which the route passed them, latest first.
    Sequence(Vec<Asn>),
    /// ASes of an aggregate, in no order.
    Set(Vec<Asn>),
}

impl Segment {
    /// Its numbers.
    pub fn asns(&self) -> &[Asn] {
        match self {
            Self::Sequence(asns) | Self::Set(asns) => asns,
        }
    }

    fn asns_mut(&mut self) -> &mut Vec<Asn> {
        match self {
            Self::Sequence(asns) | Self::Set(asns) => asns,
        }
    }
}

/// An AS_PATH. No two sequences follow each other; one may have more than 255 numbers, and is
/// cut where it is encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath(Vec<Segment>);

impl AsPath {
    /// A path of these segments.
    pub fn new(segments: Vec<Segment>) -> Self {
        let mut path = Self::default();
        path.extend(segments);
        path
    }

    /// Adds segments that are farther away.
    fn extend(&mut self, segments: Vec<Segment>) {
        for segment in segments {
            match (self.0.last_mut(), segment) {
                (Some(Segment::Sequence(last)), Segment::Sequence(more)) => last.extend(more),
                (_, segment) => self.0.push(segment),
            }
        }
    }

    /// A path of one sequence.
    pub fn sequence(asns: impl IntoIterator<Item = Asn>) -> Self {
        let asns: Vec<Asn> = asns.into_iter().collect();
        if asns.is_empty() { Self::default() } else { Self(vec![Segment::Sequence(asns)]) }
    }

    /// Its segments.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// The length for route selection: a set counts once (RFC 4271 section 9.1.2.2 a).
    pub fn hops(&self) -> usize {
        let length = |segment: &Segment| match segment {
            Segment::Sequence(asns) => asns.len(),
            Segment::Set(_) => 1,
        };
        self.0.iter().map(length).sum()
    }

    /// Whether an AS is anywhere in it: its own routes come back to it so (section 9.1.2).
    pub fn contains(&self, asn: Asn) -> bool {
        self.0.iter().any(|segment| segment.asns().contains(&asn))
    }

    /// How often an AS is in it.
    pub fn count(&self, asn: Asn) -> usize {
        let all = self.0.iter().flat_map(Segment::asns);
        all.filter(|other| **other == asn).count()
    }

    /// The AS that the route was learned from, for comparing MEDs (section 9.1.2.2 c).
    pub fn neighbor(&self) -> Option<Asn> {
        match self.0.first()? {
            Segment::Sequence(asns) => asns.first().copied(),
            Segment::Set(_) => None,
        }
    }

    /// The path as the next AS has to see it (section 5.1.2 b).
    #[must_use]
    pub fn prepended(&self, asn: Asn) -> Self {
        let mut segments = self.0.clone();
        match segments.first_mut() {
            Some(Segment::Sequence(asns)) => asns.insert(0, asn),
            _ => segments.insert(0, Segment::Sequence(vec![asn])),
        }
        Self(segments)
    }

    /// Reads an AS_PATH or AS4_PATH. `None` if it is malformed (RFC 7606 section 7.2), which
    /// confederation segments are on a session that is no confederation's (RFC 5065 section 5).
    pub(super) fn decode(bytes: &[u8], four_octet: bool) -> Option<Self> {
        let width = if four_octet { 4 } else { 2 };
        let mut reader = Reader::new(bytes);
        let mut segments: Vec<Segment> = Vec::with_capacity(count_segments(bytes, width));
        while !reader.is_empty() {
            let (kind, count) = (reader.u8()?, reader.u8()?);
            // RFC 7606 section 7.2: a segment of no AS is malformed.
            if count == 0 {
                return None;
            }
            let octets = reader.take(usize::from(count) * width)?;
            let asns = match (kind, segments.last_mut()) {
                // Two sequences in a row say the same as one.
                (AS_SEQUENCE, Some(Segment::Sequence(asns))) => asns,
                (AS_SEQUENCE, _) => {
                    segments.push(Segment::Sequence(Vec::with_capacity(count.into())));
                    segments.last_mut()?.asns_mut()
                }
                (AS_SET, _) => {
                    segments.push(Segment::Set(Vec::with_capacity(count.into())));
                    segments.last_mut()?.asns_mut()
                }
                _ => return None,
            };
            let mut octets = Reader::new(octets);
            while !octets.is_empty() {
                let asn = if four_octet { octets.u32()? } else { u32::from(octets.u16()?) };
                // RFC 7607 section 2.
                asns.push(Asn::new(asn).ok()?);
            }
        }
        Some(Self(segments))
    }

    /// An AS4_PATH without its confederation segments, which are to be dropped and not to be an
    /// error (RFC 6793 section 6).
    pub(super) fn decode_as4(bytes: &[u8]) -> Option<Self> {
        let mut kept = Vec::new();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let start = reader.rest();
            let (kind, count) = (reader.u8()?, reader.u8()?);
            reader.take(usize::from(count) * 4)?;
            if !matches!(kind, AS_CONFED_SEQUENCE | AS_CONFED_SET) {
                kept.extend_from_slice(start.get(..start.len() - reader.remaining())?);
            }
        }
        Self::decode(&kept, true)
    }

    /// Puts the numbers of an AS4_PATH in the place of 23456 (RFC 6793 section 4.2.3). An
    /// AS4_PATH that is longer than the path is ignored.
    #[must_use]
    pub(super) fn merged(self, as4: &Self) -> Self {
        let Some(missing) = self.hops().checked_sub(as4.hops()) else {
            return self;
        };
        let mut head = Vec::new();
        let mut left = missing;
        for segment in self.0 {
            if left == 0 {
                break;
            }
            match segment {
                Segment::Sequence(mut asns) => {
                    asns.truncate(left);
                    left -= asns.len();
                    head.push(Segment::Sequence(asns));
                }
                Segment::Set(asns) => {
                    left -= 1;
                    head.push(Segment::Set(asns));
                }
            }
        }
        let mut merged = Self::new(head);
        merged.extend(as4.0.clone());
        merged
    }

    /// Whether it has an AS_SET (RFC 9774).
    pub(crate) fn has_set(&self) -> bool {
        self.0.iter().any(|segment| matches!(segment, Segment::Set(_)))
    }

    /// Whether a two-octet peer cannot see it as it is.
    pub(super) fn needs_as4(&self) -> bool {
        let numbers = self.0.iter().flat_map(|segment| segment.asns());
        numbers.into_iter().any(|asn| asn.get() > u32::from(u16::MAX))
    }

    pub(super) fn encode(&self, four_octet: bool, out: &mut Vec<u8>) {
        for segment in &self.0 {
            let (kind, asns) = match segment {
                Segment::Sequence(asns) => (AS_SEQUENCE, asns),
                Segment::Set(asns) => (AS_SET, asns),
            };
            for part in asns.chunks(255) {
                out.extend_from_slice(&[kind, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
                for asn in part {
                    if four_octet {
                        out.extend_from_slice(&asn.get().to_be_bytes());
                    } else {
                        out.extend_from_slice(&two_octets(*asn).to_be_bytes());
                    }
                }
            }
        }
    }
}

/// How many segments there will be: a path of many small ones takes much memory as it is.
fn count_segments(bytes: &[u8], width: usize) -> usize {
    let mut reader = Reader::new(bytes);
    let (mut segments, mut last) = (0, 0);
    while let (Some(kind), Some(count)) = (reader.u8(), reader.u8()) {
        if reader.take(usize::from(count) * width).is_none() {
            break;
        }
        segments += usize::from(kind != AS_SEQUENCE || last != AS_SEQUENCE);
        last = kind;
    }
    segments
}

/// A number as an old speaker sees it (RFC 6793 section 4.2.2).
pub(super) fn two_octets(asn: Asn) -> u16 {
    // AS_TRANS has 16 bits.
    u16::try_from(asn.get()).unwrap_or(23456)
}

impl fmt::Display for AsPath {
    /// `64513 64512 {65001 65002}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |asns: &[Asn]| asns.iter().map(Asn::to_string).collect::<Vec<_>>().join(" ");
        let mut separator = "";
        for segment in &self.0 {
            f.write_str(separator)?;
            match segment {
                Segment::Sequence(asns) => f.write_str(&join(asns))?,
                Segment::Set(asns) => write!(f, "{{{}}}", join(asns))?,
            }
            separator = " ";
        }
        Ok(())
    }
}
