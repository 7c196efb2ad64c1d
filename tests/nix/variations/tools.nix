# Every tunable of the tools daemon away from its default, and servers of both kinds.
{
  module.services.lares.tools = {
    listen = "127.0.0.1:9091";
    memoryMax = "4 GiB";
    cpuQuota = "150%";
    tasksMax = 500;
    servers = {
      files = {
        command = [
          "/srv/bin/files"
          "--root"
          "/srv/notes"
        ];
        env.LOG_LEVEL = "warning";
        envFiles.FILES_TOKEN = "/run/secrets/files.token";
        directory = "/home/ada/work";
        read = [
          "/srv/books"
          "/home/ada/books"
        ];
        write = [
          "/srv/notes"
          "~/made-here"
        ];
        trusted = true;
        protocol = "sessions";
        tags = [ "files" ];
        callTimeout = "5m";
        maxConcurrent = 2;
      };
      "near.by" = {
        url = "http://127.0.0.1:9400/mcp";
        headerFiles.X-Key = "/run/secrets/near.key";
        protocol = "stateless";
      };
      # Not used, so nothing of it reaches the unit.
      off = {
        enabled = false;
        command = [ "/srv/bin/off" ];
        network = "host";
        envFiles.OFF_TOKEN = "/run/secrets/off.token";
        write = [ "/srv/off" ];
      };
    };
    discovery = {
      interval = "1m";
      ports = [
        "8000"
        "8100-8110"
      ];
      units = false;
      unitUrls."weather.service" = "http://127.0.0.1:9401/mcp";
    };
    search = {
      embedding = "in-process";
      model = "/home/ada/models/embed.gguf";
      threads = 2;
      limit = 5;
    };
    gateway = {
      mode = "both";
      maxSessions = 32;
      sessionIdle = "10m";
    };
    policy = [
      {
        tools = [ "files__write_*" ];
        keys = [ "ci" ];
        action = "deny";
      }
      {
        tools = [ "files__*" ];
        action = "ask";
      }
    ];
    defaultPolicy = "allow";
    toolsets.review = {
      tools = [ "files__read_*" ];
      keys = [ "reviewer" ];
      mode = "list";
      namespaces = false;
    };
    startTimeout = "1m";
    listTimeout = "30s";
    callTimeout = "10m";
    circuitAfter = 5;
    circuitOpen = "30s";
    grace = "5m";
    maxResult = "1 MiB";
  };
  settings.tools = {
    listen = "127.0.0.1:9091";
    servers = {
      files = {
        command = [
          "/srv/bin/files"
          "--root"
          "/srv/notes"
        ];
        env.LOG_LEVEL = "warning";
        env_files.FILES_TOKEN = "/run/credentials/lares-tools.service/env-files__FILES_TOKEN";
        directory = "/home/ada/work";
        trusted = true;
        protocol = "sessions";
        call_timeout = "5m";
        max_concurrent = 2;
        network = "none";
      };
      "near.by".header_files.X-Key = "/run/credentials/lares-tools.service/header-near.by__X-Key";
      off.env_files.OFF_TOKEN = "/run/secrets/off.token";
    };
    discovery = {
      interval = "1m";
      client_files = [ ];
      units = false;
      unit_urls."weather.service" = "http://127.0.0.1:9401/mcp";
    };
    search = {
      model = "/home/ada/models/embed.gguf";
      threads = 2;
      limit = 5;
    };
    gateway = {
      mode = "both";
      max_sessions = 32;
      session_idle = "10m";
    };
    policy = [
      {
        tools = [ "files__write_*" ];
        keys = [ "ci" ];
        action = "deny";
      }
      {
        tools = [ "files__*" ];
        keys = [ ];
        action = "ask";
      }
    ];
    toolsets.review = {
      tools = [ "files__read_*" ];
      keys = [ "reviewer" ];
      mode = "list";
      namespaces = false;
    };
    default_policy = "allow";
    start_timeout = "1m";
    list_timeout = "30s";
    call_timeout = "10m";
    circuit_after = 5;
    circuit_open = "30s";
    grace = "5m";
    max_result = "1 MiB";
  };
  units = {
    "lares-tools.service" = {
      has = [
        "LoadCredential=env-files__FILES_TOKEN:/run/secrets/files.token"
        "LoadCredential=header-near.by__X-Key:/run/secrets/near.key"
        "BindPaths=-/srv/notes"
        "BindReadOnlyPaths=-/home/ada/books"
        "BindReadOnlyPaths=-/home/ada/work"
        "BindReadOnlyPaths=-/home/ada/models/embed.gguf"
        "MemoryMax=4294967296"
        "CPUQuota=150%"
        "TasksMax=500"
        # Nothing that is used is elsewhere.
        "IPAddressDeny=any"
      ];
      lacks = [
        "off.token"
        "/srv/off"
        # It can be read as it is.
        "/srv/books"
        # The unit has its state directory anyway.
        "made-here"
        "lares-model-"
      ];
    };
    "lares-coordinator.service".lacks = [ "files.token" ];
    "lares-ralph.service".lacks = [
      "files.token"
      "/srv/notes"
    ];
  };
  # A file of one's own is not fetched.
  absentPrefix = [ "lares-model-" ];
  settingsMatch."healer.units" = ".*http://127.0.0.1:9091/health.*";
}
