# Every tunable of the healer away from its default, and units of the user's own.
{
  module = {
    systemd.services.app = { };
    systemd.services.web = { };
    systemd.services."worker@" = { };
    systemd.services.app-database = { };
    services.lares.healer = {
      listen = "127.0.0.1:9099";
      cooldown = "10s";
      backoffMax = "5m";
      maxPerHour = 3;
      maxPerMinute = 30;
      circuitAfter = 5;
      circuitOpen = "1h";
      verifyHold = "1m";
      verifyTimeout = "10m";
      patience = "1h";
      patternsFile = "/etc/lares/patterns.toml";
      approveAfter = 10;
      helper = "/run/elsewhere/helper.sock";
      units."app.service" = {
        keepRunning = true;
        probe = {
          http = "http://127.0.0.1:3000/health";
          interval = "1s";
          timeout = "500ms";
          threshold = 5;
        };
        database = "app-database.service";
        databaseFile = "/var/lib/app/app.sqlite";
        memoryMax = "2 GiB";
        ports = [
          13000
          13001
        ];
        portVariable = "PORT";
      };
      units."web.service" = {
        dependencies = [ "app.service" ];
        portVariables."app.service" = "APP_PORT";
        probe.command = [
          "/run/current-system/sw/bin/true"
        ];
      };
      units."worker@1.service".probe.tcp = "127.0.0.1:4000";
    };
  };
  settings.healer = {
    listen = "127.0.0.1:9099";
    cooldown = "10s";
    backoff_max = "5m";
    max_per_hour = 3;
    max_per_minute = 30;
    circuit_after = 5;
    circuit_open = "1h";
    verify_hold = "1m";
    verify_timeout = "10m";
    patience = "1h";
    patterns_file = "/etc/lares/patterns.toml";
    approve_after = 10;
    helper = "/run/elsewhere/helper.sock";
    units."app.service" = {
      keep_running = true;
      probe = {
        http = "http://127.0.0.1:3000/health";
        interval = "1s";
        timeout = "500ms";
        threshold = 5;
      };
      database = "app-database.service";
      database_file = "/var/lib/app/app.sqlite";
      memory_max = "2 GiB";
      ports = [
        13000
        13001
      ];
      port_variable = "PORT";
    };
    units."web.service" = {
      dependencies = [ "app.service" ];
      port_variables."app.service" = "APP_PORT";
      probe.command = [ "/run/current-system/sw/bin/true" ];
    };
    units."worker@1.service".probe.tcp = "127.0.0.1:4000";
    # Lares' own are still there.
    units."lares-ralph.service".probe.http = "http://127.0.0.1:8098/health";
  };
  # Exact names, and no other way in than `YES` for these.
  rules.has = [
    ''"app.service"''
    ''"worker@1.service"''
    ''"postgresql.service"''
    ''var verbs = ["start","stop","restart","reset-failed","ref"];''
    ''"org.lares.healer.roll-back"''
  ];
  units = {
    "lares-healer.service".lacks = [ "IPAddressAllow=10." ];
    "lares-healer-helper.socket".has = [ "ListenStream=/run/elsewhere/helper.sock" ];
  };
}
