//! `lares tools call`.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lares_config::Config;
use lares_tools::api::{CallAnswer, CallBody, Policy, ToolDetails};
use serde_json::{Map, Value};

use super::schema::Schema;
use super::{arguments, confirm, foreign, shown, tool_path};
use crate::cli::{exit, tools::CallTool};
use crate::daemon::Daemon;
use crate::output::{self, Output};

/// Largest arguments, in bytes: as much as the daemon takes.
const ARGUMENTS_MAX: u64 = 2 * 1024 * 1024;
/// Time for what is not the call itself: the way there, and a server that has to be started first.
const AROUND: Duration = Duration::from_secs(10);

/// Carries it out and says with which code to exit.
pub async fn run(daemon: &Daemon, config: &Config, output: Output, call: &CallTool) -> Result<u8> {
    let details: ToolDetails = daemon.get(&tool_path(&call.tool, None)).await?;
    let tool = &details.tool;
    let base = call.arguments.as_deref().map_or_else(|| Ok(Map::new()), given)?;
    let nothing = Value::Null;
    let schema = Schema::new(tool.input_schema.as_ref().unwrap_or(&nothing));
    let arguments = arguments::build(schema, base, &call.pairs)
        .with_context(|| format!("`lares tools show {}` shows what it takes", tool.id))?;
    if call.dry_run {
        let arguments = Value::Object(arguments);
        output.value(&arguments, |arguments| format!("{arguments:#}"))?;
        return Ok(exit::OK);
    }
    let mut confirmed = call.yes;
    if tool.policy == Policy::Ask && !confirmed {
        let said = format!(
            "{} is asked for a person's consent before each call.\n{:#}\nCall it?",
            tool.id,
            Value::Object(arguments.clone())
        );
        if !confirm(&foreign::result(&said))? {
            bail!("{} was not called", tool.id);
        }
        confirmed = true;
    }
    let own = config.tools.servers.get(&tool.server).and_then(|server| server.call_timeout);
    let wait = own.unwrap_or(config.tools.call_timeout) + config.tools.start_timeout + AROUND;
    let body = CallBody { arguments, confirmed };
    let answer: CallAnswer = daemon.post_within(&tool_path(&call.tool, Some("call")), &body, wait).await?;
    output.value(&answer, |answer| shown::result(&answer.result, std::io::stdout().is_terminal()))?;
    if answer.is_error && !output.json {
        output::note(&format!("{} says that it failed", tool.id));
    }
    Ok(if answer.is_error { exit::FAILURE } else { exit::OK })
}

/// What --arguments gives.
fn given(text: &str) -> Result<Map<String, Value>> {
    let (json, origin) = match text.strip_prefix('@') {
        _ if text == "-" => (read(std::io::stdin().lock()).context("standard input")?, "standard input".to_owned()),
        Some(name) => {
            let origin = Path::new(name).display().to_string();
            let file = std::fs::File::open(name).with_context(|| format!("--arguments: cannot read {origin}"))?;
            (read(file).with_context(|| format!("--arguments: {origin}"))?, origin)
        }
        None => (text.to_owned(), "--arguments".to_owned()),
    };
    serde_json::from_str(&json)
        .with_context(|| format!("{origin}: a JSON object is needed, for example {{\"path\": \"README.md\"}}"))
}

fn read(from: impl Read) -> Result<String> {
    let mut text = String::new();
    from.take(ARGUMENTS_MAX + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= ARGUMENTS_MAX, "more than {}", output::bytes(ARGUMENTS_MAX));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn arguments_come_from_text_and_from_files() {
        assert_eq!(given("{\"a\": 1}").map(Value::Object).ok(), Some(serde_json::json!({"a": 1})));
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"{\"b\": [2]}").expect("space");
        let named = format!("@{}", file.path().display());
        assert_eq!(given(&named).map(Value::Object).ok(), Some(serde_json::json!({"b": [2]})));
        for (wrong, said) in [("[1]", "a JSON object is needed"), ("@/nowhere/x", "cannot read /nowhere/x")] {
            let error = given(wrong).expect_err(said);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
        assert!(read(std::io::repeat(b' ')).is_err_and(|error| error.to_string().contains("more than 2.00 MiB")));
    }
}
