// lib/pq with the pool of database/sql.
package main

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"time"

	"github.com/lib/pq"
)

func open() *sql.DB {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(connections)
	return db
}

type asking interface {
	QueryRow(query string, arguments ...any) *sql.Row
}

func value(db asking, query string, arguments ...any) (number int, err error) {
	err = db.QueryRow(query, arguments...).Scan(&number)
	return
}

func tls() error {
	db := open()
	defer db.Close()
	number, err := value(db, "SELECT 1")
	return errors.Join(err, equal(number, 1, "the answer"))
}

// By a context that ends, after which the driver sends a request.
func cancel() error {
	db := open()
	defer db.Close()
	context, end := context.WithTimeout(context.Background(), time.Second)
	defer end()
	_, err := db.ExecContext(context, sleep)
	var refused *pq.Error
	if !errors.As(err, &refused) {
		return errors.Join(errors.New("no error of the server"), err)
	}
	number, next := value(db, "SELECT 1")
	return errors.Join(equal(string(refused.Code), "57014", "SQLSTATE"), next, equal(number, 1, "the next answer"))
}

// Inwards only: the driver has no other COPY.
func copying() error {
	db := open()
	defer db.Close()
	if _, err := db.Exec("TRUNCATE copied"); err != nil {
		return err
	}
	transaction, err := db.Begin()
	if err != nil {
		return err
	}
	statement, err := transaction.Prepare(pq.CopyIn("copied", "id", "words"))
	if err != nil {
		return err
	}
	for number := 0; number < 1000; number++ {
		if _, err := statement.Exec(number, words(number)); err != nil {
			return err
		}
	}
	_, last := statement.Exec()
	if err := errors.Join(last, statement.Close(), transaction.Commit()); err != nil {
		return err
	}
	number, err := value(db, "SELECT count(*) FROM copied WHERE words = 'words ' || id || ' é'")
	return errors.Join(err, equal(number, 1000, "rows"))
}

func prepared() error {
	one, two := open(), open()
	defer one.Close()
	defer two.Close()
	first, err := one.Prepare("SELECT $1::int")
	if err != nil {
		return err
	}
	second, err := two.Prepare("SELECT $1::int + 1")
	if err != nil {
		return err
	}
	for number := 0; number < times; number++ {
		var found, other int
		err := errors.Join(first.QueryRow(number).Scan(&found), second.QueryRow(number).Scan(&other),
			equal(found, number, "the answer"), equal(other, number+1, "the other answer"))
		if err != nil {
			return err
		}
	}
	return nil
}

func pooled() error {
	outside, pool := open(), open()
	defer outside.Close()
	defer pool.Close()
	before, err := value(outside, count)
	if err != nil {
		return err
	}
	err = inTasks(tasks, func(int) error {
		transaction, err := pool.Begin()
		if err != nil {
			return err
		}
		_, err = transaction.Exec(add)
		return errors.Join(err, transaction.Commit())
	})
	after, last := value(outside, count)
	return errors.Join(err, last, equal(after, before+tasks, "the counter"))
}

func writes() {
	pool := open()
	defer pool.Close()
	write(func(writer, number int) error {
		_, err := pool.Exec(insert, writer, number)
		return err
	})
}

func main() {
	checks := []check{{"tls", tls}, {"binding", never("not offered")}, {"cancel", cancel}, {"copy", copying}, {"prepared", prepared},
		{"pool", pooled}}
	perform(os.Getenv("VERSION"), checks, writes)
}
