-- name: count_held()
SELECT count(*) AS held FROM reservations WHERE state = 1;

-- name: row_of(subject, number)
SELECT revision FROM journal WHERE subject = :subject ORDER BY revision LIMIT 1 OFFSET :number;
