# What a person gets who sets nothing but a model.
{
  units = {
    "lares.target".has = [ "WantedBy=multi-user.target" ];
    "lares-setup.service".has = [
      "Type=oneshot"
      "RemainAfterExit=true"
      "postgresql.target"
      "User=lares"
    ];
    "lares-llama-coder.service" = {
      has = [
        ''"serve" "llama" "coder"''
        "Type=notify"
        "WatchdogSec="
        "DynamicUser=true"
        "Restart=on-failure"
        "RestartSec=100ms"
        "RestartSteps="
        "RestartMaxDelaySec="
        "OMP_WAIT_POLICY=passive"
        "IPAddressDeny=any"
        "MemoryDenyWriteExecute=true"
        "PrivateDevices=true"
        "CapabilityBoundingSet="
        "SystemCallFilter="
        "ProtectSystem=strict"
      ];
      lacks = [
        "LimitMEMLOCK"
        "MemoryMax="
        "User=root"
      ];
    };
    "lares-coordinator.service".has = [
      ''"serve" "coordinator"''
      "Type=notify"
      "WatchdogSec="
      "User=lares"
      "IPAddressDeny=any"
      "ProtectSystem=strict"
      "NoNewPrivileges=true"
    ];
    "lares-ralph.service" = {
      has = [
        ''"serve" "ralph"''
        "Type=notify"
        "User=lares"
        "IPAddressDeny=any"
        "ProtectSystem=strict"
      ];
      lacks = [ "BindPaths=" ];
    };
    "lares-healer.service" = {
      has = [
        ''"serve" "healer"''
        "Type=notify"
        "User=lares-healer"
        "SupplementaryGroups=systemd-journal"
        "Restart=always"
        "WatchdogSec="
        "LARES_STATE_DIR=%S/lares-healer"
        "IPAddressDeny=any"
        "ProtectSystem=strict"
        "CapabilityBoundingSet="
        "WantedBy=lares.target"
      ];
      lacks = [
        "coordinator-key"
        # It comes up before its patients.
        "After=postgresql"
      ];
    };
    "lares-tools.service" = {
      has = [
        ''"serve" "tools"''
        "Type=notify"
        "User=lares"
        "WatchdogSec="
        "OOMPolicy=continue"
        "TasksMax=4096"
        "IPAddressDeny=any"
        "ProtectSystem=strict"
        "ProtectHome=tmpfs"
        "CapabilityBoundingSet="
        "Wants=lares-setup.service lares-model-all-minilm-l6-v2.service"
        "WantedBy=lares.target"
      ];
      lacks = [
        "BindPaths="
        "LoadCredential"
        "MemoryMax="
        "CPUQuota="
      ];
    };
    "lares-model-all-minilm-l6-v2.service".has = [ ''"model" "pull" "all-minilm-l6-v2"'' ];
    "lares-healer-helper.socket".has = [
      "ListenStream=/run/lares/helper.sock"
      "SocketMode=0600"
      "SocketUser=lares-healer"
      "WantedBy=lares.target"
    ];
    "lares-healer-helper.service" = {
      has = [
        ''"serve" "helper"''
        "RestrictAddressFamilies=AF_UNIX"
        "IPAddressDeny=any"
        "ReadWritePaths=/run/systemd/system"
      ];
      lacks = [
        "IPAddressAllow"
        "Restart="
        "WantedBy="
        "User="
      ];
    };
  };
  # A model that is a file already needs no unit that fetches it.
  absent = [ "lares-model-coder.service" ];
  settings = {
    state_dir = "/var/lib/lares";
    store.url = "postgresql:///lares?host=/run/postgresql";
    coordinator.listen = "127.0.0.1:8092";
    ralph.listen = "127.0.0.1:8098";
    tools = {
      listen = "127.0.0.1:8091";
      discovery.client_files = [ ];
      search.model = "all-minilm-l6-v2";
    };
    models.coder.path = "/srv/models/coder.gguf";
    models.coder.port = 8080;
    healer.units = {
      "lares-coordinator.service" = {
        probe.http = "http://127.0.0.1:8092/health";
        dependencies = [ "postgresql.service" ];
      };
      "lares-llama-coder.service".probe.http = "http://127.0.0.1:8080/health";
      "lares-ralph.service" = {
        probe.http = "http://127.0.0.1:8098/health";
        dependencies = [ "postgresql.service" ];
      };
      "lares-tools.service" = {
        probe.http = "http://127.0.0.1:8091/health";
        dependencies = [ "postgresql.service" ];
      };
      "postgresql.service".keep_running = false;
    };
  };
  rules.has = [
    ''var units = ["lares-coordinator.service","lares-llama-coder.service","lares-ralph.service","lares-tools.service","postgresql.service"];''
  ];
  config = {
    services.postgresql.identMap = ''
      lares lares lares
      lares lares-healer lares
    '';
    services.postgresql.enable = true;
    services.postgresql.ensureDatabases = [ "lares" ];
    services.qdrant = { };
  };
}
