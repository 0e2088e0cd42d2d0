// Times in words, the same words the server uses (pages/view.py), against the server's clock.

let skew = 0;

export function setServerTime(stamp) {
  const server = Date.parse(stamp);
  if (!Number.isNaN(server)) skew = server - Date.now();
}

export const now = () => Date.now() + skew;

export function duration(milliseconds) {
  const whole = Math.max(0, Math.floor(milliseconds / 1000));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

export function ago(moment) {
  const seconds = Math.max(0, Math.floor((now() - moment) / 1000));
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 10) * 10} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 86400 * 14) return `${Math.floor(seconds / 86400)} d ago`;
  return null; // the server's date stands
}

export function refreshTimes(root = document) {
  for (const element of root.querySelectorAll("time[data-ago]")) {
    const text = ago(Date.parse(element.dateTime));
    if (text !== null && element.textContent !== text) element.textContent = text;
  }
}
