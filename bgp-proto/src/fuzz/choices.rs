/// Bytes, read as choices. A run is over when there are none left; what is asked for beyond is zero.
#[derive(Debug)]
pub(super) struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// The next octet, if there is one.
    pub(super) fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    pub(super) fn octet(&mut self) -> u8 {
        self.next().unwrap_or_default()
    }

    pub(super) fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    pub(super) fn flag(&mut self) -> bool {
        self.octet() & 1 == 1
    }

    /// 0 to `end` - 1; 0 if `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::from(self.octet()).checked_rem(end).unwrap_or_default()
    }

    pub(super) fn pick<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        const { assert!(N > 0, "there is nothing to choose from") };
        all[self.below(N)]
    }

    /// Up to so many octets as they are.
    pub(super) fn octets(&mut self, count: usize) -> &'a [u8] {
        let (octets, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        octets
    }
}
