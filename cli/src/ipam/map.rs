//! A picture of a pool: a cell for each block, or for each prefix that covers a few of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;
use twill_types::{Family, Prefix};

use super::view::{BlockView, Datastore, View};

/// Cells of a picture: 2 to the power of this at the most.
const MOST: u8 = 10;

/// A pool in cells.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Grid {
    pub(super) pool: String,
    pub(super) cidr: Prefix,
    pub(super) block_size: u8,
    /// The prefix length of a cell.
    pub(super) cell_length: u8,
    /// How many cells there are.
    pub(super) count: usize,
    /// Those that are not free as a whole, by their index.
    pub(super) cells: BTreeMap<usize, Cell>,
    /// How many blocks each node has.
    pub(super) nodes: BTreeMap<String, usize>,
}

/// One cell.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cell {
    pub(super) range: Prefix,
    /// Who has blocks of it; nobody, where it is reserved as a whole.
    pub(super) nodes: BTreeSet<String>,
    pub(super) blocks: usize,
    pub(super) used: u128,
    pub(super) size: u128,
    /// Whether all of the owners say how full their blocks are.
    pub(super) known: bool,
}

impl Cell {
    /// 0 is empty, 10 is full, and what is between is neither.
    pub(super) fn level(&self) -> u8 {
        match self.used {
            0 => 0,
            used if used >= self.size => 10,
            used => u8::try_from(1 + used * 9 / self.size).unwrap_or(9).min(9),
        }
    }

    fn sign(&self) -> char {
        match self.level() {
            _ if !self.known => '?',
            10 => '*',
            level => char::from(b'0' + level),
        }
    }
}

/// All pools.
pub(super) fn grids(view: &View, all: &Datastore) -> Vec<Grid> {
    let grid = |pool: &super::view::PoolView| {
        let blocks: Vec<&BlockView> = view
            .blocks
            .iter()
            .filter(|block| block.pool == pool.name && pool.cidr.covers(block.block.prefix()))
            .collect();
        let length = pool.cidr.length();
        let cell_length = pool.block_size.clamp(length, length + MOST);
        let mut grid = Grid {
            pool: pool.name.clone(),
            cidr: pool.cidr,
            block_size: pool.block_size,
            cell_length,
            count: 1 << (cell_length - length),
            cells: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        for block in blocks {
            *grid.nodes.entry(block.node.clone()).or_default() +=
                usize::from(block.lent_by.is_none());
            grid.add(block);
        }
        for (_, range) in &all.reservations {
            grid.reserve(*range);
        }
        grid
    };
    view.pools.iter().map(grid).collect()
}

impl Grid {
    fn range(&self, index: usize) -> Option<Prefix> {
        self.cidr.subnet(self.cell_length, index as u128)
    }

    fn index_of(&self, range: Prefix) -> Option<usize> {
        let offset = self.cidr.offset_of(range.address())?;
        let bits = self.cidr.family().bits() - self.cell_length;
        usize::try_from(offset >> bits).ok()
    }

    /// The cells that a prefix lies in, or that lie in it.
    fn touched(&self, range: Prefix) -> std::ops::Range<usize> {
        let first = self.index_of(range).unwrap_or(self.count);
        let count = match self.cell_length.checked_sub(range.length()) {
            Some(bits) => 1usize.checked_shl(bits.into()).unwrap_or(self.count),
            None => 1,
        };
        first..(first.saturating_add(count)).min(self.count)
    }

    fn cell(&mut self, index: usize) -> Option<&mut Cell> {
        let range = self.range(index)?;
        let empty = || Cell {
            range,
            nodes: BTreeSet::new(),
            blocks: 0,
            used: 0,
            size: range.size(),
            known: true,
        };
        Some(self.cells.entry(index).or_insert_with(empty))
    }

    fn add(&mut self, block: &BlockView) {
        let touched = self.touched(block.block.prefix());
        let share = u128::try_from(touched.len().max(1)).unwrap_or(1);
        for index in touched {
            let Some(cell) = self.cell(index) else { continue };
            cell.nodes.insert(block.node.clone());
            cell.blocks += 1;
            match &block.numbers {
                Some(numbers) => cell.used += u128::from(numbers.used) / share,
                None => cell.known = false,
            }
        }
    }

    /// Marks what nobody gets a block of.
    fn reserve(&mut self, range: Prefix) {
        if !range.overlaps(self.cidr) || range.length() > self.cell_length {
            return;
        }
        let touched = if range.covers(self.cidr) { 0..self.count } else { self.touched(range) };
        for index in touched {
            let _ = self.cell(index);
        }
    }

    /// A letter for each node.
    pub(super) fn letters(&self) -> BTreeMap<&str, char> {
        let letters = ('a'..='z').chain('A'..='Z').chain(std::iter::repeat('#'));
        self.nodes.keys().map(String::as_str).zip(letters).collect()
    }

    pub(super) fn letter(&self, cell: &Cell, letters: &BTreeMap<&str, char>) -> char {
        match cell.nodes.first() {
            Some(node) if cell.nodes.len() == 1 => {
                letters.get(node.as_str()).copied().unwrap_or('#')
            }
            Some(_) => '+',
            None => '-',
        }
    }

    /// What there is to see.
    pub(super) fn title(&self) -> String {
        let blocks: u32 = u32::from(self.block_size.saturating_sub(self.cidr.length()));
        let all = 1u128.checked_shl(blocks).unwrap_or(u128::MAX);
        let claimed: usize = self.nodes.values().sum();
        let mut text = format!(
            "{} {}: {claimed} of {} blocks of /{} are claimed",
            self.pool,
            self.cidr,
            super::table::count(all),
            self.block_size
        );
        if self.cell_length < self.block_size {
            let each = 1u128.checked_shl(u32::from(self.block_size - self.cell_length));
            let each = super::table::count(each.unwrap_or(u128::MAX));
            let _ = write!(text, "; each cell is a /{} with {each} of them", self.cell_length);
        }
        text
    }
}

/// Draws a pool for a terminal.
pub(super) fn draw(grid: &Grid, width: usize, color: bool) -> String {
    let letters = grid.letters();
    let label = match grid.cidr.family() {
        Family::V4 => 16,
        Family::V6 => 26,
    };
    // A power of two, so that a row is a prefix.
    let room = (width.saturating_sub(label) / 3).max(1);
    let row = (1usize << room.ilog2()).min(grid.count);
    let mut text = format!("{}\n", grid.title());
    let mut skipped = 0;
    for first in (0..grid.count).step_by(row) {
        let is_free = grid.cells.range(first..first + row).next().is_none();
        if is_free && grid.count > 8 * row {
            skipped += 1;
            continue;
        }
        free_rows(&mut text, &mut skipped);
        let address = grid.range(first).map_or(String::new(), |r| r.address().to_string());
        let _ = write!(text, "{address:<label$}");
        for index in first..first + row {
            let sign = match grid.cells.get(&index) {
                None => "..".to_owned(),
                Some(cell) if cell.nodes.is_empty() => "--".to_owned(),
                Some(cell) => format!("{}{}", grid.letter(cell, &letters), cell.sign()),
            };
            let paint = grid.cells.get(&index).filter(|_| color).map(shade);
            match paint {
                Some(code) => _ = write!(text, "\x1b[30;48;5;{code}m{sign}\x1b[0m "),
                None => _ = write!(text, "{sign} "),
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    free_rows(&mut text, &mut skipped);
    for (node, count) in &grid.nodes {
        let blocks = if *count == 1 { "block" } else { "blocks" };
        let _ = writeln!(text, "{} {node}: {count} {blocks}", letters[node.as_str()]);
    }
    text.push_str(
        "0 to 9: tenths in use, *: full, ?: not known; +: of several nodes, ..: free, --: reserved\n",
    );
    text
}

fn free_rows(text: &mut String, skipped: &mut usize) {
    match std::mem::take(skipped) {
        0 => {}
        1 => text.push_str("  (one row that is free)\n"),
        rows => _ = writeln!(text, "  ({rows} rows that are free)"),
    }
}

/// Of the 256 colours of a terminal: green to red.
fn shade(cell: &Cell) -> u8 {
    match cell.level() {
        _ if cell.nodes.is_empty() => 250,
        _ if !cell.known => 255,
        0 => 194,
        1..=3 => 157,
        4..=6 => 228,
        7..=9 => 216,
        _ => 203,
    }
}
