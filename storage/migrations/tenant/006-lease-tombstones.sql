-- A lease that was taken back stays known for some days, so that a late copy of its first order does not bring it back (docs/adr/012).
alter table quota_lease add column fenced_at timestamptz;
create index on quota_lease (fenced_at) where fenced_at is not null;
