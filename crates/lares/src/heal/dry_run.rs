//! `lares heal dry-run`: what the healer would do, asked of the healer, or concluded here where none runs.

use std::time::Duration;

use anyhow::{Context, Result};
use lares_config::HealedUnit;
use lares_healer::api::{Healing, full_name};
use lares_healer::classify::Classifier;
use lares_healer::decide::{Decision, History, Policy, Reason};
use lares_healer::observe::{Context as Known, Observer, PROFILE, Settings};
use lares_healer::outlook::Outlook;
use lares_healer::patterns::Patterns;
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
        None => Healing { outlook: look(global, arguments).await?, incident: None },
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

/// A unit of systemd as this command itself sees it. What the configuration says of units counts; the unit itself and those
/// that `--may` names may be acted on without it.
async fn look(global: &Global, arguments: &cli::DryRun) -> Result<Outlook> {
    let unit = UnitId::new(full_name(&arguments.unit))?;
    let config = configuration::load_for_client(global)?;
    let mut settings = Settings::of(&config, PROFILE.into());
    for name in arguments.may.iter().map(|name| full_name(name)).chain([unit.to_string()]) {
        settings.units.entry(name).or_default();
    }
    let systemd = Systemd::connect(SystemdSettings::default())
        .await
        .context("units of systemd can be looked at where systemd runs; `lares status` shows those of `lares up`")?;
    let classifier = match &config.healer.patterns_file {
        Some(path) => {
            let named = || format!("in the pattern file {}", path.display());
            Patterns::with_file(path).and_then(Classifier::new).with_context(named)?
        }
        None => Classifier::builtin(),
    };
    let policy = Policy::of(&config.healer, settings.units.get(unit.as_str()).unwrap_or(&HealedUnit::default()));
    // What was said a moment ago counts while it is up.
    let context = Known { recent: config.healer.verify_hold, ..Known::default() };
    let observer = Observer::new(&systemd, &classifier, &settings);
    let seen = timeout(LOOKING, observer.observe(&unit, &context))
        .await
        .with_context(|| format!("looking at {unit} took longer than {} s", LOOKING.as_secs()))??;
    let policy = Policy { keep_running: policy.keep_running || arguments.keep_running, ..policy };
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
        // The cause says so already.
        Decision::Hold { reason: Reason::Healthy, .. } => {}
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
    if let Some(advice) = &outlook.advice {
        row("advice", advice);
    }
    for what in &outlook.unknown {
        row("unknown", what);
    }
    let lines: Vec<String> = rows.into_iter().map(|(word, text)| format!("{word:<9} {text}")).collect();
    lines.join("\n")
}
