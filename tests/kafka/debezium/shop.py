"""A shop in a database, what happens in it, and what its views are in SQL."""

from __future__ import annotations

from tests.kafka.debezium.story import LONG

_CLOCK = """
create function touched() returns trigger language plpgsql as $$
begin new.changed := clock_timestamp(); return new; end $$"""
_KEPT = """
create function kept() returns trigger language plpgsql as $$
begin
  if tg_op = 'TRUNCATE' then
    insert into history (id, since, gone) select distinct id, clock_timestamp(), true from history;
  elsif tg_op = 'DELETE' or (tg_op = 'UPDATE' and old.id <> new.id) then
    insert into history (id, since, gone) values (old.id, clock_timestamp(), true);
  end if;
  if tg_op in ('INSERT', 'UPDATE') then
    insert into history (id, name, bio, since, gone) values (new.id, new.name, new.bio, new.changed, false);
  end if;
  return null;
end $$"""

BEFORE = [
    "create table customers (id int primary key, name text, bio text, changed timestamptz, photo bytea)",
    "create table orders (id int primary key, customer int, amount numeric(12, 2), note text, changed timestamptz)",
    "create table history (n bigserial, id int, name text, bio text, since timestamptz, gone boolean)",
    "alter table orders alter note set storage external",
    "alter table customers alter bio set storage external, alter photo set storage external",
    _CLOCK,
    _KEPT,
    "create trigger touched before insert or update on orders for each row execute function touched()",
    "create trigger touched before insert or update on customers for each row execute function touched()",
    "create trigger kept after insert or update or delete on customers for each row execute function kept()",
    "create trigger emptied after truncate on customers execute function kept()",
    f"insert into customers values (1, 'Ann', '{LONG[0]}'), (2, 'Bob', 'short'), (3, 'Eve', null)",
    f"update customers set photo = '{LONG[1]}' where id = 1",
    f"insert into orders values (1, 1, 10.25, '{LONG[0]}'), (2, 1, 20, null), (3, 2, 30.5, 'a'), (4, 3, 5, 'b')",
    f"insert into orders values (7, 2, 70, '{LONG[1]}'), (8, 2, 80, '{LONG[1]}'), (9, 9, 90, '')",
]
"""What is there when Debezium comes. The history of customers is kept for SQL alone."""

FIRST = [
    f"insert into orders values (5, 2, 50, '{LONG[1]}')",
    "update orders set amount = 11.75 where id = 1",  # the note is not told
    "update customers set name = 'Anna' where id = 1",  # the bio and the photo are not told
    "update orders set amount = 12.25 where id = 1",
    "delete from orders where id = 2",
    f"begin; insert into orders values (6, 1, 60, '{LONG[0]}'); update orders set amount = 61 where id = 6;"
    " update orders set customer = 3, amount = 31 where id = 3; delete from orders where id = 4; commit",
    "begin; insert into orders values (10, 1, 1000, 'never'); rollback",
    "update orders set id = 30 where id = 3",  # another key
    "update orders set id = 70 where id = 7",  # and the note is not told
]
"""While Freshet runs."""

SECOND = [
    f"update customers set bio = '{LONG[1]}' where id = 2",
    "update customers set name = 'Robert' where id = 2",
    "update orders set amount = 51 where id = 5",
    "delete from customers where id = 3",
    "update orders set note = 'c' where id = 30",
    "update orders set customer = 2 where id = 1",
    "alter table orders replica identity full",
    "update orders set id = 80 where id = 8",  # another key, and the note is told
    "insert into orders values (10, 1, 15.5, 'd'); delete from orders where id = 10;"
    " insert into orders values (10, 1, 16.5, 'e')",
    "select pg_logical_emit_message(true, 'audit', 'by hand')",
]
"""While it does not."""

THIRD = [
    "truncate customers",
    "update orders set amount = 52 where id = 5",
    f"insert into customers values (2, 'Bo', '{LONG[0]}', null, '{LONG[1]}'), (4, 'Dan', 'new', null, null)",
    "update customers set name = 'Bob' where id = 2",
    "update orders set amount = 53 where id = 1",
    "update customers set id = 5 where id = 4",
]
"""When it runs again."""

LAST = [
    f"begin; truncate orders; insert into orders values (1, 2, 1.5, '{LONG[0]}'), (11, 5, 11.5, 'f'); commit",
    "update orders set amount = 14 where id = 1",
]

VIEWS = {
    "totals": "select customer, count(*) orders, sum(amount)::float8 amount from orders group by customer",
    "dear": "select id, amount::float8, note from orders where amount > 10",
    "joined": "select o.id, o.customer, o.note, h.name, h.bio from orders o left join lateral ("
    "select case when not gone then name end as name, case when not gone then bio end as bio from history h"
    " where h.id = o.customer and h.since <= o.changed order by since desc, n desc limit 1) h on true",
    "known": r"select id, name, bio, replace(encode(photo, 'base64'), E'\n', '') photo from customers",
}
