//! The speaker with BIRD, FRR, GoBGP and OpenBGPD as the peer: every row of the matrix in `docs/bgp.md` with
//! each of them, in the same words.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use twill_tests::programs;

mod bird_router;
mod faults;
mod frr_router;
mod gobgp_router;
mod large;
mod negotiated;
mod openbgpd_router;
mod reflected;
mod rig;
mod router;
mod routes;
mod sessions;
mod signed;

/// The tests of one peer.
macro_rules! rows {
    ($peer:ident, $router:ty, [$($group:ident::$row:ident),* $(,)?]) => {
        pub(crate) mod $peer {
            use anyhow::Result;

            $(pub(crate) fn $row() -> Result<()> {
                super::$group::$row::<$router>()
            })*
        }
    };
}

macro_rules! matrix {
    ($($peer:ident: $router:ty, and [$($group:ident::$more:ident),* $(,)?];)*) => {
        $(rows!($peer, $router, [
            sessions::families,
            sessions::over_ipv6,
            sessions::ibgp,
            sessions::who_dials,
            sessions::hold_time,
            faults::refused_asn,
            faults::no_capabilities,
            faults::shutdown_text,
            routes::withdraw,
            routes::communities,
            large::large_table_in,
            large::large_table_out,
            signed::password,
            signed::ttl_security,
            negotiated::refresh_asked,
            negotiated::no_common_family,
            negotiated::add_path,
            reflected::communities_passed_on,
            $($group::$more,)*
        ]);)*
    };
}

matrix! {
    bird: crate::interop::bird_router::BirdRouter, and [
        sessions::collision,
        routes::refresh,
        negotiated::enhanced_refresh,
        negotiated::extended_messages,
        negotiated::ipv4_over_ipv6,
        negotiated::roles,
    ];
    frr: crate::interop::frr_router::FrrRouter, and [
        sessions::collision,
        routes::refresh,
        negotiated::enhanced_refresh,
        negotiated::extended_messages,
        negotiated::ipv4_over_ipv6,
        negotiated::roles,
        negotiated::no_common_family_heard,
    ];
    // It never asks for routes again: it keeps what it has refused. And it does not dial while it is dialled.
    gobgp: crate::interop::gobgp_router::GobgpRouter, and [];
}

// It waits for half a minute and longer after an error, so rows that break a session on purpose are
// not among these; it announces one path to what is its own; and its 7.7 answers no ROUTE-REFRESH.
rows!(
    openbgpd,
    crate::interop::openbgpd_router::OpenbgpdRouter,
    [
        sessions::families,
        sessions::over_ipv6,
        sessions::ibgp,
        sessions::who_dials,
        faults::no_capabilities,
        faults::shutdown_text,
        routes::withdraw,
        routes::refresh,
        routes::communities,
        large::large_table_in,
        large::large_table_out,
        signed::ttl_security,
        negotiated::no_common_family,
        reflected::communities_passed_on,
    ]
);

pub(crate) use reflected::nodes_reach_each_other_by_a_reflector;
pub(crate) use sessions::a_lack_of_files_is_outlived;
pub(crate) use signed::{
    a_changed_password_resets_one_session, a_missing_secret_is_named_and_opens_nothing,
};

/// The page has every test of the matrix, and none that there is not.
pub(crate) fn the_page_names_every_cell() -> Result<()> {
    let page = names(&fs::read_to_string(programs::source("docs/bgp.md"))?);
    let suite = names(&fs::read_to_string(programs::source("tests/kernel/main.rs"))?);
    let unknown: Vec<_> = page.difference(&suite).collect();
    ensure!(unknown.is_empty(), "docs/bgp.md names tests that there are not: {unknown:?}");
    let missing: Vec<_> = suite.difference(&page).collect();
    ensure!(missing.is_empty(), "not in docs/bgp.md: {missing:?}");
    Ok(())
}

/// The tests `interop::PEER::ROW` in a text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !word(c));
    let rows =
        words.filter(|word| word.starts_with("interop::") && word.matches("::").count() == 2);
    rows.map(str::to_owned).collect()
}
