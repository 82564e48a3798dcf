//! The picture of pools as a file.

use std::fmt::Write;

use super::map::{Cell, Grid};

const CELL: usize = 20;
const ROW: usize = 32;
const LEFT: usize = 190;
const WIDTH: usize = LEFT + ROW * CELL + 20;

/// Draws pools, one below the other.
pub(super) fn draw(grids: &[Grid]) -> String {
    let mut body = String::new();
    let mut top = 20;
    for grid in grids {
        top = pool(&mut body, grid, top) + 30;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Draws one; answers where it ends.
fn pool(svg: &mut String, grid: &Grid, top: usize) -> usize {
    let letters = grid.letters();
    let mut y = top + 16;
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"20\" y=\"{y}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
        escape(&grid.title())
    );
    y += 14;
    let row = ROW.min(grid.count);
    for first in (0..grid.count).step_by(row) {
        let address = grid.cidr.subnet(grid.cell_length, first as u128);
        let address = address.map_or(String::new(), |range| range.address().to_string());
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-family=\"monospace\" \
             font-size=\"11\">{address}</text>",
            LEFT - 8,
            y + 14
        );
        for index in first..first + row {
            let x = LEFT + (index - first) * CELL;
            cell(svg, grid, index, (x, y), |cell| grid.letter(cell, &letters));
        }
        y += CELL;
    }
    y += 24;
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{y}\" fill=\"#555555\">filled: in use; ?: not known how full; +: of \
         several nodes; grey: reserved</text>"
    );
    for (node, count) in &grid.nodes {
        y += 16;
        let (letter, node) = (letters[node.as_str()], escape(node));
        let blocks = if *count == 1 { "block" } else { "blocks" };
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{y}\"><tspan font-weight=\"bold\">{letter}</tspan> {node}: \
             {count} {blocks}</text>"
        );
    }
    y
}

fn cell(
    svg: &mut String,
    grid: &Grid,
    index: usize,
    (x, y): (usize, usize),
    letter: impl Fn(&Cell) -> char,
) {
    const SIDE: usize = CELL - 2;
    let Some(found) = grid.cells.get(&index) else {
        let range = grid.cidr.subnet(grid.cell_length, index as u128);
        let range = range.map_or(String::new(), |range| range.to_string());
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"#f2f4f5\">\
             <title>{range}: free</title></rect>"
        );
        return;
    };
    let nodes: Vec<&str> = found.nodes.iter().map(String::as_str).collect();
    let what = match (nodes.is_empty(), found.known) {
        (true, _) => "reserved".to_owned(),
        (_, true) => format!("{}, {} of {} in use", nodes.join(", "), found.used, found.size),
        (_, false) => format!("{}, not known how full", nodes.join(", ")),
    };
    // The filled part grows from the bottom, so the picture is read without colours, too.
    let filled = SIDE * usize::from(found.level()) / 10;
    let ground = if nodes.is_empty() { "#b9c4cc" } else { "#d6e6f2" };
    let _ = writeln!(
        svg,
        "<g><title>{}: {}</title><rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" \
         fill=\"{ground}\"/><rect x=\"{x}\" y=\"{}\" width=\"{SIDE}\" height=\"{filled}\" \
         fill=\"#d9822b\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text></g>",
        found.range,
        escape(&what),
        y + SIDE - filled,
        x + SIDE / 2,
        y + 13,
        if found.known { letter(found) } else { '?' },
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
