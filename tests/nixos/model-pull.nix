# A model that another machine serves: fetched once, verified, and kept over a restart. A file with another hash than
# the configured one is refused.
{
  nodes = {
    shelf =
      { pkgs, ... }:
      {
        services.lares.enable = false;
        networking.firewall.allowedTCPPorts = [ 80 ];
        services.nginx = {
          enable = true;
          virtualHosts.default = {
            default = true;
            root = pkgs.linkFarm "models" [
              {
                name = "tiny.gguf";
                path = import ./tiny-model.nix { inherit pkgs; };
              }
            ];
          };
        };
      };

    machine = {
      services.lares = {
        ralph.enable = false;
        models = {
          tiny = {
            url = "http://shelf/tiny.gguf";
            sha256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";
            contextSize = 1024;
          };
          forged = {
            url = "http://shelf/tiny.gguf";
            sha256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
          };
        };
      };
    };
  };

  testScript = ''
    shelf.start()
    shelf.wait_for_unit("nginx.service")
    shelf.wait_for_open_port(80)
    machine.start()

    with subtest("the file is fetched, then served"):
        machine.wait_for_unit("lares-llama-tiny.service", timeout=300)
        machine.succeed("ls -l /var/lib/lares-models/*.gguf")

    with subtest("a file that is not what was meant is never used"):
        machine.wait_until_succeeds("journalctl --unit lares-model-forged.service | grep 'wrong hash'", timeout=120)
        machine.fail("systemctl is-active lares-llama-forged.service")
        files = machine.succeed("ls /var/lib/lares-models/*.gguf").split()
        assert len(files) == 1, files

    with subtest("a coordinator does not wait for a model that never comes"):
        machine.wait_for_unit("lares-coordinator.service", timeout=120)

    with subtest("the file is there after a restart, without the other machine"):
        shelf.shutdown()
        machine.shutdown()
        machine.start()
        machine.wait_for_unit("lares-llama-tiny.service", timeout=300)
  '';
}
