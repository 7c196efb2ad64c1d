-- What a person let a tool server touch when approving it: `{"network": "none", "read": [], "write": []}`, for exactly what
-- `approved_fingerprint` names. NULL: nothing.
ALTER TABLE tool_servers ADD COLUMN granted jsonb;
