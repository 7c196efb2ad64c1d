//! `lares heal dry-run`: what the healer would do, asked of the healer, or concluded here where none runs.

use std::time::Duration;

use anyhow::{Context, Result};
use lares_healer::api::{Healing, full_name};
use lares_healer::classify::Classifier;
use lares_healer::decide::{Decision, History, Policy};
use lares_healer::observe::Observer;
use lares_healer::outlook::Outlook;
use lares_healer::remedy::Step;
use lares_units::port::UnitId;
use lares_units::{Systemd, SystemdSettings};
use tokio::time::timeout;

use crate::cli::{self, Global};
use crate::configuration;
use crate::daemon::{self, Daemon};
use crate::output::{self, Output};

/// Longest that looking at one unit may take.
const LOOKING: Duration = Duration::from_secs(20);

/// Carries it out.
pub async fn run(global: &Global, output: Output, arguments: &cli::DryRun) -> Result<()> {
    // The healer goes by its own configuration, so what is supposed here only counts without it.
    let alone = arguments.offline || arguments.keep_running || !arguments.may.is_empty();
    let told = if alone { None } else { ask(global, &arguments.unit).await? };
    let healing = match told {
        Some(told) => told,
        None => Healing { outlook: look(arguments).await?, incident: None },
    };
    output.value(&healing, |healing| {
        let mut text = describe(&healing.outlook, "would");
        if let Some(incident) = healing.incident {
            text.push_str(&format!("\nincident  {incident} is open; `lares incident show {incident}` tells its story"));
        }
        text
    })
}

/// What the healer says; nothing where none runs here, or it does not know the unit.
async fn ask(global: &Global, unit: &str) -> Result<Option<Healing>> {
    let config = configuration::load_for_client(global)?;
    let asked = match Daemon::healer(&config) {
        Ok(healer) => healer.command(&daemon::path(&["api", "v1", "heal", unit], &[("dry_run", "true")])).await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(healing) => Ok(Some(healing)),
        Err(daemon::Error::Unreachable { .. } | daemon::Error::NoKey { .. }) => Ok(None),
        Err(error) => {
            output::note(&format!("{error}. What follows was found out without the healer"));
            Ok(None)
        }
    }
}

/// A unit of systemd as this command itself sees it.
async fn look(arguments: &cli::DryRun) -> Result<Outlook> {
    let unit = UnitId::new(full_name(&arguments.unit))?;
    let systemd = Systemd::connect(SystemdSettings::default())
        .await
        .context("units of systemd can be looked at where systemd runs; `lares status` shows those of `lares up`")?;
    let classifier = Classifier::builtin();
    let ours = arguments.may.iter().map(|name| full_name(name)).chain([unit.to_string()]);
    let seen = timeout(LOOKING, Observer::new(&systemd, &classifier, ours).observe(&unit))
        .await
        .with_context(|| format!("looking at {unit} took longer than {} s", LOOKING.as_secs()))??;
    let policy = Policy { keep_running: arguments.keep_running, ..Policy::default() };
    Ok(Outlook::of(seen, &policy, &History::default()))
}

/// What is wrong and what follows; `will` is the word for that: `would` or `will`.
pub fn describe(outlook: &Outlook, will: &str) -> String {
    let facts = &outlook.facts;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |word: &str, text: &str| rows.push((word.to_owned(), output::plain(text)));
    row("unit", &facts.unit);
    for symptom in &facts.symptoms {
        row("symptom", &symptom.to_string());
    }
    for line in facts.matched.iter().flat_map(|found| &found.evidence) {
        row("it said", line);
    }
    row("cause", &outlook.explanation);
    let listed = |steps: &[Step]| steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ");
    match &outlook.decision {
        Decision::Hold { reason, alert } => {
            row("nothing", &format!("{reason}{}", if *alert { "; a person is told" } else { "" }));
        }
        Decision::Act { alert, .. } => {
            for (word, steps) in std::iter::once(will).chain(std::iter::repeat("else")).zip(&outlook.steps) {
                row(word, &listed(steps));
            }
            if *alert {
                row("and", "tell a person");
            }
        }
        Decision::Ask { .. } => {
            for steps in &outlook.steps {
                row(&format!("{will} ask"), &listed(steps));
            }
        }
    }
    for advice in &outlook.advice {
        row("advice", advice);
    }
    for what in &outlook.unknown {
        row("unknown", what);
    }
    let lines: Vec<String> = rows.into_iter().map(|(word, text)| format!("{word:<9} {text}")).collect();
    lines.join("\n")
}
