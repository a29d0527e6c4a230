//! Reads arbitrary bytes as answers of etcd's gateway.

use super::message::{Lines, MAX_MESSAGE, error, single, token, update};
use crate::fuzzing::{choice, reads};
use crate::wire::text::is_unsafe;

pub(crate) fn run(data: &[u8]) {
    let (seed, data) = choice(data);
    if let Ok(single) = single(data)
        && let Some(value) = single.value
    {
        let _ = super::member(&value);
        let _ = super::requested(Some(&value));
    }
    let _ = token(data);
    let _ = super::member(data);
    let _ = super::requested(Some(data));
    assert!(!error(data).chars().any(is_unsafe));
    // The messages do not depend on how the stream is split.
    let mut lines = Lines::default();
    let mut split = Vec::new();
    let mut fault = None;
    for read in reads(data, seed) {
        match lines.push(read) {
            Ok(updates) => split.extend(updates),
            Err(error) => {
                fault = Some(error.to_string());
                break;
            }
        }
    }
    let mut whole = Vec::new();
    let complete = data
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(&[][..], |end| &data[..end]);
    let result = complete
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .try_for_each(|line| {
            whole.push(update(line)?);
            Ok::<_, super::EtcdError>(())
        });
    if data.len() < MAX_MESSAGE {
        assert_eq!(fault, result.err().map(|error| error.to_string()));
        if fault.is_none() {
            assert_eq!(split, whole);
        }
    }
}
