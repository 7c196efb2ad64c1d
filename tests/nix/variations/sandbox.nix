{
  module.services.lares.agents.sandbox = {
    mode = "off";
    read = [ "/opt/toolchain" ];
    write = [ "/var/cache/builds" ];
    checkNetwork = "host";
    maxMemory = "2 GiB";
    maxFile = "100 MiB";
    maxProcesses = 64;
    maxOutput = "64 KiB";
  };
  settings.agents.sandbox = {
    mode = "off";
    read = [ "/opt/toolchain" ];
    write = [ "/var/cache/builds" ];
    check_network = "host";
    max_memory = "2 GiB";
    max_file = "100 MiB";
    max_processes = 64;
    max_output = "64 KiB";
  };
}
