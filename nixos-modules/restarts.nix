# How systemd brings a unit back. It never gives up: a database that is away for an hour is no reason to stay down.
{
  Restart = "on-failure";
  # The first restart is almost at once, the waits then grow: 0.1 s, 0.2 s, 0.5 s … 30 s.
  RestartSec = "100ms";
  RestartSteps = 8;
  RestartMaxDelaySec = "30s";
  # A configuration that is refused stays refused until it changes (EX_CONFIG).
  RestartPreventExitStatus = 78;
}
