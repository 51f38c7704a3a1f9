//! Columns that stand below each other.

use std::io::Write;

/// Write rows of cells, the header among them. The last cell of a row is as wide as it is.
pub(crate) fn write<const COLUMNS: usize>(rows: &[[String; COLUMNS]], out: &mut dyn Write) -> anyhow::Result<()> {
    let widths = widths(rows);
    for row in rows {
        writeln!(out, "{}", line(row, &widths))?;
    }
    Ok(())
}

/// How wide each column has to be.
pub(crate) fn widths<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> [usize; COLUMNS] {
    std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
}

/// One row, without blanks at its end.
pub(crate) fn line<const COLUMNS: usize>(row: &[String; COLUMNS], widths: &[usize; COLUMNS]) -> String {
    let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    cells.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "LONG"], ["wide", "x"]].map(|row| row.map(String::from));
        let mut out = Vec::new();
        super::write(&rows, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A     LONG\nwide  x\n");
    }
}
