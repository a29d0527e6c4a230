//! The lines that the writers of one driver have written so far, each read once: a long run has
//! hundreds of thousands.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::account::{Login, Write, parse};

pub struct Tail {
    path: PathBuf,
    read: u64,
    pub writes: Vec<Write>,
    pub logins: Vec<Login>,
}

impl Tail {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            writes: Vec::new(),
            logins: Vec::new(),
        }
    }

    /// What has been added since. A line that is not whole yet is left for the next time.
    pub fn read(&mut self) {
        let mut added = Vec::new();
        let Ok(mut file) = File::open(&self.path) else {
            return;
        };
        file.seek(SeekFrom::Start(self.read)).unwrap();
        file.read_to_end(&mut added).unwrap();
        let whole = added
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        self.read += whole as u64;
        let (writes, logins) = parse(&String::from_utf8_lossy(&added[..whole]));
        self.writes.extend(writes);
        self.logins.extend(logins);
    }
}

#[test]
fn each_line_is_read_once_and_whole() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines");
    let mut tail = Tail::new(path.clone());
    tail.read();
    let mut file = File::create(path).unwrap();
    for (part, logins) in [
        ("login\t1\t2\t7\tdone\t-\t\nlogin\t3\t4\t7\tdo", 1),
        ("", 1),
        ("ne\t-\t\n", 2),
        ("", 2),
    ] {
        file.write_all(part.as_bytes()).unwrap();
        tail.read();
        let ended: Vec<u64> = tail.logins.iter().map(|login| login.ended).collect();
        assert_eq!(ended, &[2, 4][..logins], "after {part:?}");
    }
}
