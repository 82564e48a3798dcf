//! Messages out of a seed: valid ones, and damaged ones.

use twill_bgp_proto::wire::Session;

/// A generator of numbers (xorshift64*): the same seed, the same numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }

    pub(crate) fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn octets(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.octet()).collect()
    }

    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn attribute(random: &mut Random, flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    // A reader has to take the long form of a short length, too.
    let mut out = match u8::try_from(value.len()) {
        Ok(length) if !random.one_in(16) => vec![flags, kind, length],
        _ => {
            let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
            vec![flags | 0x10, kind, high, low]
        }
    };
    out.extend_from_slice(value);
    out
}

fn number(random: &mut Random, four_octet: bool) -> Vec<u8> {
    let asn: u32 = random.pick(&[64512, 65001, 1, 65535, 23456, 4_200_000_000, 70_000]);
    match (four_octet, u16::try_from(asn)) {
        (true, _) => asn.to_be_bytes().to_vec(),
        (false, Ok(asn)) => asn.to_be_bytes().to_vec(),
        (false, Err(_)) => 23456u16.to_be_bytes().to_vec(),
    }
}

fn path(random: &mut Random, four_octet: bool) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..random.below(4) {
        let count = 1 + random.below(4);
        value.extend([if random.one_in(6) { 1 } else { 2 }, u8::try_from(count).unwrap()]);
        for _ in 0..count {
            value.extend(number(random, four_octet));
        }
    }
    value
}

fn prefixes(random: &mut Random, v6: bool, with_id: bool, most: usize) -> Vec<u8> {
    let mut field = Vec::new();
    for _ in 0..random.below(most + 1) {
        if with_id {
            field.extend(random.octets(4));
        }
        let length = if v6 { random.pick(&[0, 32, 48, 64, 122, 128, 7]) } else { random.below(33) };
        field.push(u8::try_from(length).unwrap());
        let first = if v6 { 0x20 } else { 10 };
        let mut octets = random.octets(length.div_ceil(8));
        if let Some(octet) = octets.first_mut() {
            *octet = first;
        }
        field.extend(octets);
    }
    field
}

fn mp_reach(random: &mut Random, session: &Session) -> Vec<u8> {
    let v6 = !random.one_in(4);
    let mut global = vec![0x20, 0x01, 0x0d, 0xb8];
    global.extend(random.octets(12));
    let mut value = vec![0, if v6 { 2 } else { 1 }, 1];
    if v6 || (session.extended_next_hop && random.one_in(2)) {
        if random.one_in(4) {
            let mut local = vec![0xfe, 0x80];
            local.extend(random.octets(14));
            value.push(32);
            value.extend(global);
            value.extend(local);
        } else {
            value.push(16);
            value.extend(global);
        }
    } else {
        value.extend([4, 192, 0, 2, random.octet()]);
    }
    value.push(0);
    let with_id = if v6 { session.add_path.receive_ipv6 } else { session.add_path.receive_ipv4 };
    value.extend(prefixes(random, v6, with_id, 6));
    value
}

fn mp_unreach(random: &mut Random, session: &Session) -> Vec<u8> {
    let v6 = !random.one_in(4);
    let mut value = vec![0, if v6 { 2 } else { 1 }, 1];
    let with_id = if v6 { session.add_path.receive_ipv6 } else { session.add_path.receive_ipv4 };
    value.extend(prefixes(random, v6, with_id, 6));
    value
}

/// The value and the flags of a valid attribute.
fn value(random: &mut Random, kind: u8, session: &Session) -> (u8, Vec<u8>) {
    let four = session.four_octet_as;
    let count = 1 + random.below(5);
    match kind {
        1 => (0x40, vec![random.pick(&[0, 1, 2])]),
        2 => (0x40, path(random, four)),
        3 => (0x40, vec![192, 0, 2, random.octet()]),
        4 => (0x80, random.octets(4)),
        5 => (0x40, random.octets(4)),
        6 => (0x40, Vec::new()),
        7 => (0xc0, [number(random, four), random.octets(4)].concat()),
        8 => (0xc0, random.octets(4 * count)),
        9 => (0x80, random.octets(4)),
        10 => (0x80, random.octets(4 * count)),
        14 => (0x80, mp_reach(random, session)),
        15 => (0x80, mp_unreach(random, session)),
        16 => (0xc0, random.octets(8 * count)),
        17 => (0xc0, path(random, true)),
        18 => (0xc0, [number(random, true), random.octets(4)].concat()),
        26 => (0x80, [vec![1, 0, 11], random.octets(8)].concat()),
        32 => (0xc0, random.octets(12 * count)),
        35 => (0xc0, number(random, true)),
        _ => (random.pick(&[0xc0, 0xe0, 0x80]), random.octets(count)),
    }
}

/// The body of an UPDATE with nothing wrong in it, and not what our encoder would write: other
/// orders, other forms of lengths, more than one field of routes.
pub(crate) fn update(random: &mut Random, session: &Session) -> Vec<u8> {
    let with_id = session.add_path.receive_ipv4;
    let withdrawn = if random.one_in(3) { prefixes(random, false, with_id, 8) } else { Vec::new() };
    let most = if random.one_in(50) { 600 } else { 12 };
    let nlri = if random.one_in(3) { Vec::new() } else { prefixes(random, false, with_id, most) };
    let mut kinds: Vec<u8> = vec![1, 2, 3];
    let optional = [4, 5, 6, 7, 8, 9, 10, 14, 14, 15, 16, 17, 18, 26, 32, 35, 99, 200, 255];
    for kind in optional {
        let known = match kind {
            5 | 9 | 10 => session.internal,
            17 | 18 => !session.four_octet_as,
            _ => true,
        };
        if known && random.one_in(5) && !kinds.contains(&kind) {
            let place = random.below(kinds.len() + 1);
            kinds.insert(place, kind);
        }
    }
    let mut attributes = Vec::new();
    if !random.one_in(20) {
        for kind in kinds {
            let (mut flags, value) = value(random, kind, session);
            if flags & 0xc0 == 0xc0 && random.one_in(8) {
                flags |= 0x20;
            }
            attributes.extend(attribute(random, flags, kind, &value));
        }
    }
    let length = |field: &[u8]| u16::try_from(field.len()).unwrap().to_be_bytes();
    [&length(&withdrawn), withdrawn.as_slice(), &length(&attributes), &attributes, &nlri].concat()
}

/// An AFI: mostly of ours.
fn family(random: &mut Random) -> Vec<u8> {
    random.pick(&[[0, 1], [0, 2], [0, 1], [0, 2], [0, 1], [0, 25]]).to_vec()
}

/// A family and its flags, of which one bit means something.
fn flagged(random: &mut Random, flag: u8) -> Vec<u8> {
    let safi = random.pick(&[1, 1, 1, 1, 70]);
    let flags = random.pick(&[0, flag, flag, 0x7f]);
    [family(random), vec![safi, flags]].concat()
}

/// A capability that is a list of up to three entries.
fn list(random: &mut Random, code: u8, entry: impl Fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let entries: Vec<u8> = (0..random.below(4)).flat_map(|_| entry(random)).collect();
    [vec![code, u8::try_from(entries.len()).unwrap()], entries].concat()
}

/// The body of an OPEN: it is taken, though what is in it is not always known.
pub(crate) fn open(random: &mut Random) -> Vec<u8> {
    let mut capabilities: Vec<Vec<u8>> = vec![vec![65, 4, 0, 0, 0xfc, 0]];
    for _ in 0..random.below(12) {
        let one = match random.below(14) {
            0 | 1 => {
                [vec![1, 4], family(random), vec![0, random.pick(&[1, 1, 1, 2, 70, 128])]].concat()
            }
            2 => vec![2, 0],
            3 => list(random, 5, |random| {
                [family(random), vec![0, 1], vec![0, random.pick(&[1, 2, 2])]].concat()
            }),
            4 => vec![6, 0],
            5 => vec![9, 1, random.octet() % 6],
            6 => {
                let bits = random.pick(&[0, 0x40, 0x80, 0xc0]) | random.octet() & 0x0f;
                let mut one = list(random, 64, |random| flagged(random, 0x80));
                one.splice(2..2, [bits, random.octet()]);
                one[1] += 2;
                one
            }
            7 => list(random, 69, |random| {
                let mode = random.pick(&[1, 2, 3, 3, 1, 2, 0, 4]);
                [family(random), vec![1, mode]].concat()
            }),
            8 => vec![70, 0],
            9 => list(random, 71, |random| [flagged(random, 0x80), random.octets(3)].concat()),
            10 => match random.below(3) {
                0 => vec![73, 5, 2, b'n', b'1', 1, b'x'],
                1 => vec![73, 4, 2, b'n', b'1', 0],
                _ => vec![73, 6, 2, b'n', b'1', 1, b'x', 0],
            },
            11 => [vec![77, 0], list(random, 76, |_| vec![0, 1, 1, 0, 5])].concat(),
            12 => [vec![200, 100], random.octets(100)].concat(),
            _ => vec![128, 0],
        };
        capabilities.push(one);
    }
    let value = capabilities.concat();
    let mut body = vec![4, 0xfc, 0, 0, 90];
    body.extend(random.pick(&[[10, 0, 0, 1], [10, 0, 0, 1], [192, 0, 2, 1], [239, 0, 0, 1]]));
    match u8::try_from(value.len() + 2) {
        Ok(length) if length < 255 && !random.one_in(8) => {
            body.extend([length, 2, length - 2]);
        }
        _ => {
            body.extend([255, 255]);
            body.extend(u16::try_from(value.len() + 3).unwrap().to_be_bytes());
            body.push(2);
            body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        }
    }
    body.extend(value);
    body
}

/// One to four changes of eight kinds.
pub(crate) fn damage(random: &mut Random, body: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        if body.is_empty() {
            body.push(random.octet());
        }
        let at = random.below(body.len());
        match random.below(8) {
            0 => body[at] ^= 1 << random.below(8),
            1 => body[at] = random.octet(),
            2 => body[at] = random.pick(&[0, 1, 2, 4, 32, 33, 128, 129, 254, 255]),
            3 => {
                body.remove(at);
            }
            4 => body.insert(at, random.octet()),
            5 => body.truncate(at),
            6 => {
                let end = (at + 1 + random.below(24)).min(body.len());
                let piece = body[at..end].to_vec();
                let to = random.below(body.len());
                body.splice(to..to, piece);
            }
            _ => {
                let end = (at + 1 + random.below(8)).min(body.len());
                body.drain(at..end);
            }
        }
    }
    body.truncate(65_516);
}
