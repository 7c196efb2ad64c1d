# Every tunable of the coordinator away from its default.
{
  module.services.lares.coordinator = {
    listen = "127.0.0.1:9092";
    maxQueued = 16;
    queueTimeout = "1m";
    firstByteTimeout = "2m";
    idleTimeout = "30s";
    retries = 0;
    maxBody = "1 MiB";
  };
  settings.coordinator = {
    listen = "127.0.0.1:9092";
    max_queued = 16;
    queue_timeout = "1m";
    first_byte_timeout = "2m";
    idle_timeout = "30s";
    retries = 0;
    max_body = "1 MiB";
  };
}
