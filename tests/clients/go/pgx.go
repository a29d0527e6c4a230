// pgx with its pool.
package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var background = context.Background()

func value(connection *pgx.Conn, query string) (number int, err error) {
	err = connection.QueryRow(background, query).Scan(&number)
	return
}

func connected(more string, run func(*pgx.Conn) error) error {
	connection, err := pgx.Connect(background, dsn+more)
	if err != nil {
		return err
	}
	defer connection.Close(background)
	return run(connection)
}

func tls(more string) func() error {
	return func() error {
		return connected(more, func(connection *pgx.Conn) error {
			number, err := value(connection, "SELECT 1")
			return errors.Join(err, equal(number, 1, "the answer"))
		})
	}
}

// By a request: a context that ends closes the connection. The first request may come before the statement runs.
func cancel() error {
	return connected("", func(connection *pgx.Conn) error {
		end := make(chan error, 1)
		go func() {
			_, err := connection.Exec(background, sleep)
			end <- err
		}()
		for {
			select {
			case err := <-end:
				var refused *pgconn.PgError
				if !errors.As(err, &refused) {
					return errors.Join(errors.New("no error of the server"), err)
				}
				number, next := value(connection, "SELECT 1")
				return errors.Join(equal(refused.Code, "57014", "SQLSTATE"), next, equal(number, 1, "the next answer"))
			case <-time.After(200 * time.Millisecond):
				if err := connection.PgConn().CancelRequest(background); err != nil {
					return err
				}
			}
		}
	})
}

func copying() error {
	return connected("", func(connection *pgx.Conn) error {
		if _, err := connection.Exec(background, "TRUNCATE copied"); err != nil {
			return err
		}
		rows := make([][]any, 1000)
		for number := range rows {
			rows[number] = []any{number, words(number)}
		}
		if _, err := connection.CopyFrom(background, pgx.Identifier{"copied"}, []string{"id", "words"}, pgx.CopyFromRows(rows)); err != nil {
			return err
		}
		var out bytes.Buffer
		_, err := connection.PgConn().CopyTo(background, &out, copyOut)
		return errors.Join(err, equal(out.String(), lines(), "what COPY brings out"))
	})
}

func prepared() error {
	return connected("", func(one *pgx.Conn) error {
		return connected("", func(two *pgx.Conn) error {
			for number := 0; number < times; number++ {
				var first, second int
				err := errors.Join(one.QueryRow(background, "SELECT $1::int", number).Scan(&first),
					two.QueryRow(background, "SELECT $1::int + 1", number).Scan(&second),
					equal(first, number, "the answer"), equal(second, number+1, "the other answer"))
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func newPool() *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		panic(err)
	}
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(background, config)
	if err != nil {
		panic(err)
	}
	return pool
}

func pooled() error {
	return connected("", func(connection *pgx.Conn) error {
		pool := newPool()
		defer pool.Close()
		before, err := value(connection, count)
		if err != nil {
			return err
		}
		err = inTasks(tasks, func(int) error {
			return pgx.BeginFunc(background, pool, func(transaction pgx.Tx) error {
				_, err := transaction.Exec(background, add)
				return err
			})
		})
		after, last := value(connection, count)
		return errors.Join(err, last, equal(after, before+tasks, "the counter"))
	})
}

func writes() {
	pool := newPool()
	defer pool.Close()
	write(func(writer, number int) error {
		_, err := pool.Exec(background, insert, writer, number)
		return err
	})
}

func main() {
	checks := []check{{"tls", tls("")}, {"binding", tls(" channel_binding=require")}, {"cancel", cancel}, {"copy", copying},
		{"prepared", prepared}, {"pool", pooled}}
	perform(strings.TrimSpace(os.Getenv("VERSION")), checks, writes)
}
