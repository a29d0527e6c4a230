//! What a session's own connection shows of the server it leads to, where no probe could look.

use tokio::time::Instant;

use crate::backend::ServerConnection;
use crate::backend::query::simple_query;

/// Every name with its schema, and no operator: the session's `search_path` is the client's.
const ASK: &str = "SELECT s.system_identifier::pg_catalog.text, \
                   pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) \
                   FROM pg_catalog.pg_control_system() s";

/// Whether the server, which accepts writes, has the cluster's identifier (where that is known) and is on no older
/// timeline than `newest`.
pub(super) async fn is_ours(
    connection: &mut ServerConnection,
    identifier: Option<u64>,
    newest: u32,
    deadline: Instant,
) -> Result<(), &'static str> {
    let rows = simple_query(connection, ASK, 1, deadline).await;
    let row = rows.ok().and_then(|rows| rows.into_iter().next());
    let Some((seen, timeline)) = row.as_deref().and_then(read) else {
        return Err("did not say which cluster it belongs to");
    };
    if identifier.is_some_and(|ours| ours != seen) {
        return Err("belongs to another cluster");
    }
    if timeline < newest {
        return Err("is on an older timeline than has been seen");
    }
    Ok(())
}

fn read(row: &[Option<Vec<u8>>]) -> Option<(u64, u32)> {
    let [Some(identifier), Some(file)] = row else {
        return None;
    };
    let identifier: i64 = std::str::from_utf8(identifier).ok()?.parse().ok()?;
    // The first eight digits of a WAL file's name are the timeline.
    let timeline = std::str::from_utf8(file.get(..8)?).ok()?;
    Some((
        identifier.cast_unsigned(),
        u32::from_str_radix(timeline, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_and_timeline_are_read() {
        let row = |identifier: &str, file: &str| [Some(identifier.into()), Some(file.into())];
        assert_eq!(
            read(&row("-2", "0000001A0000000000000003")),
            Some((u64::MAX - 1, 26))
        );
        assert_eq!(read(&row("7", "short")), None);
        assert_eq!(read(&[Some(b"7".to_vec()), None]), None);
    }
}
