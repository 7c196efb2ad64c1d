# Every tunable of ralph away from its default.
{
  module.services.lares.ralph = {
    listen = "127.0.0.1:9098";
    workers = 3;
    worktreesDir = "/srv/worktrees";
    lease = "10s";
    maxIterations = 4;
    timeout = "20m";
    iterationTimeout = "5m";
    checkTimeout = "2m";
    maxQueued = 5;
    minFreeDisk = "1 GiB";
  };
  settings.ralph = {
    listen = "127.0.0.1:9098";
    workers = 3;
    worktrees_dir = "/srv/worktrees";
    lease = "10s";
    max_iterations = 4;
    timeout = "20m";
    iteration_timeout = "5m";
    check_timeout = "2m";
    max_queued = 5;
    min_free_disk = "1 GiB";
  };
  units."lares-ralph.service".has = [ "/srv/worktrees" ];
}
