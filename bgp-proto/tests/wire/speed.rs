//! What decoding and encoding cost beside the two other codecs, in one run. Prints figures, and
//! fails only where the codec is far from what it should cost. Release builds only.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use netgauze_bgp_pkt::{update::BgpUpdateMessage, wire::deserializer::BgpParsingContext};
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};
use rustbgpd_wire::{Ipv4UnicastMode, UpdateMessage, nlri::Ipv4NlriEntry};
use twill_bgp_proto::wire::{
    AsPath, HEADER_LENGTH, Origin, PathAttributes, Session, decode_update, encode_updates,
};
use twill_types::{Asn, Family, Prefix};

const PREFIXES: usize = 500;
const ROUNDS: usize = 15;
const TURNS: usize = 2000;

/// Nanoseconds for a prefix: each of the candidates in turn, the median of the rounds.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn medians<const N: usize>(mut candidates: [(&str, &mut dyn FnMut()); N]) -> [f64; N] {
    let mut rounds = vec![[0.0; N]; ROUNDS];
    for round in &mut rounds {
        for (figure, (_, candidate)) in round.iter_mut().zip(&mut candidates) {
            let start = Instant::now();
            (0..TURNS).for_each(|_| candidate());
            let prefixes = f64::from(u32::try_from(TURNS * PREFIXES).unwrap());
            *figure = start.elapsed().as_secs_f64() * 1e9 / prefixes;
        }
    }
    let ours = candidates[0].0;
    std::array::from_fn(|at| {
        let mut all: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        all.sort_by(f64::total_cmp);
        let mut ratios: Vec<f64> = rounds.iter().map(|round| round[0] / round[at]).collect();
        ratios.sort_by(f64::total_cmp);
        let (median, ratio) = (all[ROUNDS / 2], ratios[ROUNDS / 2]);
        println!("{:28} {median:5.1} ns/prefix, {ours} takes {ratio:.2} of it", candidates[at].0);
        median
    })
}

#[test]
fn a_prefix_costs_nanoseconds() {
    if cfg!(debug_assertions) {
        return;
    }
    let pool: Prefix = "10.0.0.0/8".parse().unwrap();
    let all: Vec<Prefix> = (0..500).map(|index| pool.subnet(26, index * 3).unwrap()).collect();
    let path = AsPath::sequence([64512, 65001].map(|asn| Asn::new(asn).unwrap()));
    let attributes = PathAttributes::new(Origin::Igp, path, "192.0.2.1".parse().unwrap());
    let session = Session { four_octet_as: true, ipv4: true, ..Session::default() };
    let mut message = Vec::new();
    assert!(encode_updates(&attributes, Family::V4, &all, &session, &mut message));
    let body = &message[HEADER_LENGTH..];
    assert_eq!(decode_update(body, &session).unwrap().announced[0].1.len(), PREFIXES);

    let shared = Bytes::copy_from_slice(body);
    let mut context = BgpParsingContext::default();
    let [decode, ..] = medians([
        ("twill decode", &mut || {
            let update = decode_update(black_box(body), &session).unwrap();
            update.announced[0].1.prefixes().for_each(|prefix| {
                black_box(prefix);
            });
        }),
        ("rustbgpd-wire decode", &mut || {
            let raw = UpdateMessage::decode(&mut black_box(&shared).clone(), body.len()).unwrap();
            let parsed = raw.parse_revised(true, false, false, &[]).unwrap();
            parsed.update.announced.iter().for_each(|entry| {
                black_box(entry.prefix);
            });
        }),
        ("netgauze-bgp-pkt decode", &mut || {
            let mut reader = SliceReader::new(black_box(body));
            let update = BgpUpdateMessage::parse(&mut reader, &mut context).unwrap();
            update.nlri().iter().for_each(|entry| {
                black_box(entry.network());
            });
        }),
    ]);

    let raw = UpdateMessage::decode(&mut shared.clone(), body.len()).unwrap();
    let theirs = raw.parse(true, false, &[]).unwrap();
    let entries: Vec<Ipv4NlriEntry> = theirs.announced.clone();
    let collector =
        BgpUpdateMessage::parse(&mut SliceReader::new(body), &mut BgpParsingContext::default());
    let collector = collector.unwrap();
    let mut out = Vec::with_capacity(8192);
    let mut other = Vec::with_capacity(8192);
    let mut third = Vec::with_capacity(8192);
    let [encode, ..] = medians([
        ("twill encode", &mut || {
            out.clear();
            let all = black_box(&all);
            assert!(encode_updates(&attributes, Family::V4, all, &session, &mut out));
        }),
        ("rustbgpd-wire encode", &mut || {
            other.clear();
            let entries = black_box(&entries);
            let mode = Ipv4UnicastMode::Body;
            let update = UpdateMessage::build(entries, &[], &theirs.attributes, true, false, mode);
            update.encode(&mut other).unwrap();
        }),
        ("netgauze-bgp-pkt encode", &mut || {
            third.clear();
            black_box(&collector).write(&mut third).unwrap();
        }),
    ]);
    assert_eq!(out, other, "the same bytes");
    assert_eq!(out[HEADER_LENGTH..], third, "the same bytes");
    // Twice the target: the machine may have other work.
    assert!(decode < 20.0 && encode < 20.0, "{decode:.1} and {encode:.1} ns for a prefix");
}
