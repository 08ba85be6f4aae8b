-- name: count_held()
SELECT count(*) AS held FROM reservations WHERE state = 1;
