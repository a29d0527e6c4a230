//! The limits of the process and of this room, and how much of each is used.

use std::path::{Path, PathBuf};

use super::console;
use super::handles::Handles;
use super::http::MOST_CONNECTIONS;
use super::metrics;
use super::views::LimitView;

/// The longest chain of control groups that is looked at.
const MOST_GROUPS: usize = 32;

pub(super) fn limits(handles: &Handles) -> Vec<LimitView> {
    let listeners = handles.inventory.listeners();
    let http = listeners.iter().filter(|listener| listener.protocol == "http");
    let connections = LimitView::new("HTTP connections", "router", "connections")
        .exactly(MOST_CONNECTIONS * http.count())
        .used(handles.metrics.connections.get());
    let mut all = vec![connections];
    all.extend(console::limits());
    let mut files = LimitView::new("open files", "process", "files");
    if let Ok(limit) = rlimit::Resource::NOFILE.get_soft() {
        files = files.exactly(limit);
    }
    if let Some(open) = metrics::open_files() {
        files = files.used(open);
    }
    all.push(files);
    let mut memory = LimitView::new("memory", "process", "bytes");
    if let Some(limit) = memory_limit_of(None) {
        memory = memory.exactly(limit);
    }
    if let Some(resident) = metrics::resident_memory() {
        memory = memory.used(resident);
    }
    all.push(memory);
    all
}

/// The least `memory.max` of a process's control groups (version 2), if one has any. `None`: of
/// this process.
pub fn memory_limit_of(process_id: Option<u32>) -> Option<u64> {
    let process = process_id.map_or_else(|| "self".to_owned(), |id| id.to_string());
    let own = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let group = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    least_limit(Path::new("/sys/fs/cgroup"), group)
}

fn least_limit(root: &Path, group: &str) -> Option<u64> {
    let mut place: PathBuf = root.join(group);
    let mut least = None;
    for _ in 0..MOST_GROUPS {
        let limit = std::fs::read_to_string(place.join("memory.max")).ok();
        let limit = limit.and_then(|limit| limit.trim().parse::<u64>().ok());
        least = least.into_iter().chain(limit).min();
        if place == root || !place.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_least_limit_of_the_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/trunkline.service");
        fs::create_dir_all(&group).unwrap();
        assert_eq!(least_limit(root.path(), "system.slice/trunkline.service"), None);
        fs::write(group.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("system.slice/memory.max"), "1073741824\n").unwrap();
        let least = || least_limit(root.path(), "system.slice/trunkline.service");
        assert_eq!(least(), Some(1 << 30));
        fs::write(group.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(least(), Some(1 << 29));
    }
}
