-- A turn that was open when its session was reset or deleted ends without leaving messages behind.
alter table turn add column detached boolean not null default false;
