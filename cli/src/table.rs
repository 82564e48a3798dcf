use comfy_table::{
    Cell, CellAlignment, LineStyle, Table,
    presets::{ASCII_FULL_CONDENSED, NOTHING},
};
use jiff::{Timestamp, tz::TimeZone};

/// A table in the frame that `calicoctl` draws; the columns in `numbers` are set to the right.
pub(crate) fn framed(header: &[&str], numbers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_FULL_CONDENSED.header_separator(LineStyle::new('+', '-', '+', '+')));
    table
        .set_header(header.iter().map(|name| Cell::new(name).set_alignment(CellAlignment::Center)));
    table.add_rows(rows);
    for (column, name) in table.column_iter_mut().zip(header) {
        if numbers.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

/// A table without lines, as `calicoctl get` and `kubectl get` print it.
pub(crate) fn plain(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A time as the log of a day would show it: the clock today, the date before.
pub(crate) fn since(ms: u64, now: Timestamp, zone: &TimeZone) -> String {
    let Some(then) = timestamp(ms) else {
        return "-".to_owned();
    };
    let (then, now) = (then.to_zoned_datetime(zone.clone()), now.to_zoned_datetime(zone.clone()));
    let format = if then.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d" };
    then.strftime(format).to_string()
}

/// How long ago, with the two largest units: `42s`, `5m12s`, `3h4m`, `12d7h`.
pub(crate) fn age(ms: u64, now: Timestamp) -> String {
    let Some(then) = timestamp(ms) else {
        return "-".to_owned();
    };
    seconds(now.duration_since(then).as_secs().max(0))
}

/// A time in two units.
pub(crate) fn seconds(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()
}

/// An address with its port, if that is not BGP's own.
pub(crate) fn peer_address(address: std::net::IpAddr, port: u16) -> String {
    match port {
        179 => address.to_string(),
        port => std::net::SocketAddr::new(address, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let ms = u64::try_from(now.as_millisecond()).unwrap();
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (312, "5m12s"), (11_040, "3h4m"), (1_062_000, "12d7h")]
        {
            assert_eq!(age(ms - seconds * 1000, now), text);
        }
        // A clock that was set back.
        assert_eq!(age(ms + 60_000, now), "0s");
        assert_eq!(age(u64::MAX, now), "-");
        assert_eq!(since(ms - 7_200_000, now, &TimeZone::UTC), "10:00:00");
        assert_eq!(since(ms - 86_400_000, now, &TimeZone::UTC), "2026-11-23");
    }

    #[test]
    fn ports_show_where_they_are_unusual() {
        assert_eq!(peer_address("10.0.0.1".parse().unwrap(), 179), "10.0.0.1");
        assert_eq!(peer_address("fd00::1".parse().unwrap(), 1179), "[fd00::1]:1179");
    }
}
