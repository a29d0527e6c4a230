//! Runs one scenario so many times: `instructions SCENARIO COUNT`. scripts/instructions runs it
//! under callgrind.

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let scenario = arguments.next().context("which scenario?")?;
    let count = arguments.next().context("how many times?")?;
    trunkline::instructions::run(&scenario, count.parse()?);
    Ok(())
}
